//! Tells what happened in words, for people who read a path to a violation.
//!
//! Decides: the words.

use std::fmt::Write;

use crate::{
    model::{Action, Proof},
    network::{Message, Reply},
    server::{Role, Server},
    state::{Config, Content, State},
};

pub fn path(proof: &Proof, steps: &[(State, Option<Action>)]) -> Vec<String> {
    let blocks = usize::from(proof.scope.blocks);
    let told = steps.iter().enumerate().map(|(number, (state, action))| match action {
        Some(action) => format!("{:>3}. {}", number + 1, step(state, *action)),
        None => format!("  => {}", outcome(state, blocks)),
    });
    told.collect()
}

fn step(state: &State, action: Action) -> String {
    let who = |from| match state.links.as_client(from) {
        Some(client) => format!("guest {}", client + 1),
        None => format!("server {from}"),
    };
    match action {
        Action::Register(server) => format!("server {server} registers with a new boot"),
        Action::Configure { server, late } => {
            let manager = &state.manager;
            let told = config(if late { &manager.before } else { &manager.stored });
            format!("server {server} is told and adopts {told}")
        }
        Action::Tell(client) => {
            format!("guest {} is told {}", client + 1, config(&state.manager.stored))
        }
        Action::Prepare(server) => {
            format!("server {server} promises epoch {}", state.manager.stored.epoch + 1)
        }
        Action::FailOver(server) => format!("the manager fails over to server {server}"),
        Action::Unfence => "the manager stores the same members under the next epoch".to_owned(),
        Action::Refresh => "the manager stores the newer attach generation".to_owned(),
        Action::Drop(server) => format!("the manager drops server {server}"),
        Action::Learn(server) => format!("the manager makes server {server} a learner"),
        Action::Abandon => "the manager takes the learner out".to_owned(),
        Action::Admit => "the manager admits the learner".to_owned(),
        Action::HandOver(target) => {
            format!("the manager asks the primary to hand over to server {target}")
        }
        Action::GiveHandOverUp => "the manager gives the hand-over up".to_owned(),
        Action::Switch => "the manager stores the hand-over".to_owned(),
        Action::TakeOver => "guest 2 is attached by force".to_owned(),
        Action::Complete { server, index } => {
            let job = state.server(server).engine[usize::from(index)];
            format!("server {server} has block {} = {} durably", job.block, content(job.content))
        }
        Action::Crash { server, survived } => {
            let jobs = state.server(server).engine.len();
            let kept = survived.count_ones();
            format!("server {server} dies and starts; {kept} of {jobs} writes in flight survive")
        }
        Action::Announce(server) => format!("server {server} has handed over"),
        Action::Resume(server) => format!("server {server} heard nothing for 1 s, serves again"),
        Action::Fill { primary, block } => {
            format!("server {primary} holds and fills block {block}")
        }
        Action::Pull { learner, .. } => format!("learner {learner} is sent an image"),
        Action::Install { learner, .. } => format!("learner {learner} begins to install it"),
        Action::Compare { primary, block } => format!("server {primary} compares block {block}"),
        Action::GiveMemberUp { primary, member } => {
            format!("server {primary} waits for server {member} no more")
        }
        Action::Connect { from, to } => format!("{} connects to server {to}", who(from)),
        Action::Break { from, to } => {
            format!("the link of {} to server {to} breaks and is there again", who(from))
        }
        Action::Deliver { from, to } => {
            let sent = state.links.get(from, to).forth.first();
            format!("server {to} takes of {}: {}", who(from), message(sent))
        }
        Action::DeliverLate { from, to } => {
            let sent = state.links.get(from, to).late.first();
            format!("server {to} takes LATE of {}: {}", who(from), message(sent))
        }
        Action::Answer { from, to } => {
            let sent = state.links.get(from, to).back.first();
            format!("{} is answered by server {to}: {}", who(from), reply(sent))
        }
        Action::Dial(client) => format!("guest {} connects, asks for its session", client + 1),
        Action::Reopen(client) => format!("guest {} asks for its session again", client + 1),
        Action::BreakClient(client) => {
            format!("the link of guest {} breaks and is there again", client + 1)
        }
        Action::Write { client, block } => {
            format!("guest {} writes {} to block {block}", client + 1, state.history.begun + 1)
        }
        Action::Read { client, block } => {
            let primary = state.client(client).primary;
            let value = state.server(primary).visible(block).value;
            format!("guest {} reads block {block}: {value}", client + 1)
        }
    }
}

fn outcome(state: &State, blocks: usize) -> String {
    let mut told = format!("stored {}", config(&state.manager.stored));
    for (number, server) in state.servers.iter().enumerate() {
        let held: Vec<String> = server.blocks[..blocks].iter().map(|c| content(*c)).collect();
        let Server { promised, adopted, stale, .. } = server;
        let role = match &server.role {
            Role::Primary(primary) => format!("{:?}", primary.phase),
            Role::Mirror(_) => "follows".to_owned(),
        };
        write!(
            told,
            "\n     server {number}: holds [{}], {role} under {}, promised {promised}{}",
            held.join(", "),
            adopted.epoch,
            if *stale { ", stale" } else { "" }
        )
        .expect("strings take everything");
    }
    told
}

fn config(config: &Config) -> String {
    let Config { epoch, primary, mirrors, learner, generation, .. } = config;
    let learner = learner.map(|l| format!(", learner {l}")).unwrap_or_default();
    format!("epoch {epoch} (primary {primary}, mirrors {mirrors:?}{learner}, attach {generation})")
}

fn content(content: Content) -> String {
    let Content { mod_seq, value } = content;
    format!("{value} of {}.{}", mod_seq.epoch, mod_seq.sequence)
}

fn message(message: Option<&Message>) -> String {
    match message {
        Some(Message::Adopt(told)) => format!("Adopt {}", config(told)),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

fn reply(reply: Option<&Reply>) -> String {
    reply.map(|r| format!("{r:?}")).unwrap_or_default()
}
