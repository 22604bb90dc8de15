use proof::{
    model::Proof,
    scope::{SCOPES, Scope},
};
use stateright::{Checker, HasDiscoveries, Model};
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut scope: Scope = *SCOPES.iter().find(|s| s.name == args[0]).expect("scope");
    let mut threads = 1;
    let mut secs = 60;
    for a in &args[1..] {
        let (k, v) = a.split_once('=').expect("k=v");
        let n: u8 = v.parse().expect("number");
        match k {
            "threads" => threads = n.into(),
            "secs" => secs = n.into(),
            "servers" => scope.servers = n,
            "in_sync" => scope.in_sync = n,
            "clients" => scope.clients = n,
            "blocks" => scope.blocks = n,
            "writes" => scope.writes = n,
            "epochs" => scope.epochs = n,
            "crashes" => scope.crashes = n,
            "breaks" => scope.breaks = n,
            "failover" => scope.failover = n > 0,
            "drop" => scope.drop = n > 0,
            "learn" => scope.learn = n > 0,
            "abandon" => scope.abandon = n > 0,
            "everything" => scope.everything = n > 0,
            "mended" => scope.mended = n > 0,
            "hand_over" => {
                scope.hand_over = [
                    proof::scope::HandOvers::None,
                    proof::scope::HandOvers::Prompt,
                    proof::scope::HandOvers::Slow,
                    proof::scope::HandOvers::Late,
                ][usize::from(n)]
            }
            _ => panic!("{k}"),
        }
    }
    let begin = std::time::Instant::now();
    let checker = Proof::new(scope)
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .timeout(std::time::Duration::from_secs(secs))
        .spawn_bfs()
        .join();
    println!(
        "{} unique {} total {} depth {} {:?} done {}",
        args.join(" "),
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begin.elapsed(),
        begin.elapsed().as_secs() < secs
    );
    let found = checker.discoveries();
    for p in checker.model().properties() {
        let d = found.get(p.name);
        if d.is_some() == p.expectation.discovery_is_failure() {
            println!("   {:?} {} {}", p.expectation, p.name, d.is_some());
        }
        if let (Some(d), true) = (d, p.expectation.discovery_is_failure()) {
            for (s, a) in d.clone().into_vec() {
                println!("   {a:?}");
                if a.is_none() && std::env::var_os("S").is_some() {
                    println!("{s:#?}");
                }
            }
        }
    }
}
