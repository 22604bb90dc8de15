//! The reactor's part that reads: bytes to frames to events.

use format::{
    ctl,
    data::{DataMessage, Hello},
};

use super::{
    ConnId, Fault, NetEvent, Reactor,
    conn::{Kind, Read},
    dial::LinkName,
};

impl<P> Reactor<P> {
    pub(super) fn read_hot(&mut self, events: &mut Vec<NetEvent<P>>) {
        for id in std::mem::take(&mut self.hot) {
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            conn.hot = false;
            if !conn.may_read() {
                continue;
            }
            let read = match conn.read() {
                Ok(read) => read,
                Err(error) => {
                    self.fail(id, &error.into(), events);
                    continue;
                }
            };
            if let Err(fault) = self.take_input(id, events) {
                self.fail(id, &fault, events);
            } else if read == Read::Ended {
                self.fail(id, &Fault::Closed, events);
            } else if read == Read::More {
                self.mark_hot(id);
            }
        }
    }

    fn take_input(&mut self, id: u64, events: &mut Vec<NetEvent<P>>) -> Result<(), Fault> {
        let conn = self.conns.get_mut(&id).expect("the caller holds it");
        match &conn.kind {
            Kind::Raw => {
                if !conn.input.is_empty() {
                    events.push(NetEvent::RawReceived { conn: ConnId(id) });
                }
                Ok(())
            }
            Kind::Inbound { .. } => self.take_inbound(id, events),
            Kind::Dialed { link, .. } => {
                let link = link.clone();
                self.take_dialed(id, &link, events)
            }
        }
    }

    fn take_inbound(&mut self, id: u64, events: &mut Vec<NetEvent<P>>) -> Result<(), Fault> {
        loop {
            let conn = self.conns.get_mut(&id).expect("the caller holds it");
            let Some(frame) = conn.next_frame()? else { return Ok(()) };
            let message = DataMessage::from_frame(frame)?;
            let greeted = conn.kind == Kind::Inbound { greeted: true };
            match message {
                DataMessage::Hello(_) if greeted => return Err(Fault::HelloRepeated),
                DataMessage::Hello(hello) => {
                    self.check_cluster(&hello)?;
                    let conn = self.conns.get_mut(&id).expect("the caller holds it");
                    conn.kind = Kind::Inbound { greeted: true };
                    let answer = DataMessage::Hello(self.hello.clone());
                    self.queue(id, &answer.into_frame());
                    events.push(NetEvent::ConnOpened { conn: ConnId(id), peer: hello.peer });
                }
                _ if !greeted => return Err(Fault::HelloMissing),
                message => events.push(NetEvent::ConnReceived { conn: ConnId(id), message }),
            }
        }
    }

    fn take_dialed(
        &mut self,
        id: u64,
        name: &LinkName,
        events: &mut Vec<NetEvent<P>>,
    ) -> Result<(), Fault> {
        loop {
            let conn = self.conns.get_mut(&id).expect("the caller holds it");
            let Some(frame) = conn.next_frame()? else { return Ok(()) };
            let LinkName::Server(server) = name else {
                events.push(NetEvent::ManagerSent { message: ctl::decode(&frame)? });
                continue;
            };
            let message = DataMessage::from_frame(frame)?;
            let link = self.links.get(name).expect("a dialed connection has its link");
            match message {
                DataMessage::Hello(_) if link.up_since.is_some() => {
                    return Err(Fault::HelloRepeated);
                }
                DataMessage::Hello(hello) => {
                    self.check_cluster(&hello)?;
                    let now = self.clock.now();
                    self.links.get_mut(name).expect("looked up above").raise(now);
                    tracing::info!(%server, "link is up");
                    events.push(NetEvent::LinkUp { server: server.clone() });
                }
                _ if link.up_since.is_none() => return Err(Fault::HelloMissing),
                message => {
                    events.push(NetEvent::LinkReceived { server: server.clone(), message });
                }
            }
        }
    }

    fn check_cluster(&self, hello: &Hello) -> Result<(), Fault> {
        if hello.cluster == self.hello.cluster {
            Ok(())
        } else {
            Err(Fault::Cluster(hello.cluster.chars().take(80).collect()))
        }
    }
}
