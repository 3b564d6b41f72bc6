//! Events that wait for containerd: in order, and bounded. Pure.
//!
//! When containerd is away for longer than the bound lasts, what it can do without is given up, the oldest first: first what passes (execs
//! that begin, pauses), then what began. That something ended is never given up, because somebody waits for it: of such events there are
//! no more than there are processes, as containerd makes none while it is away.

use std::{collections::VecDeque, time::SystemTime};

use tokio::sync::oneshot;

use crate::events::Event;

/// Events that wait, beyond those that tell of an end. One is some 300 bytes, so this is at most 5 MiB.
pub const QUEUED_MAX: usize = 16_384;

/// What waits.
#[derive(Debug)]
pub enum Item {
    /// An event, and when it happened.
    Event(Event, SystemTime),
    /// Everything queued before this is delivered.
    Reached(oneshot::Sender<()>),
}

/// How much is lost with an event, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// It passes.
    Passing,
    /// It began.
    Beginning,
    /// It is over: never given up.
    End,
}

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    items: VecDeque<Item>,
}

impl Queue {
    /// Puts an event last. The event that had to go for it comes back, if one had to; it may be the same.
    pub fn push(&mut self, event: Event, at: SystemTime) -> Option<Event> {
        let mut lost = None;
        if self.items.len() >= QUEUED_MAX {
            lost = self.give_up(worth(&event));
            if lost.is_none() && worth(&event) < Worth::End {
                return Some(event);
            }
        }
        self.items.push_back(Item::Event(event, at));
        lost
    }

    /// Puts a mark last.
    pub fn push_mark(&mut self, mark: oneshot::Sender<()>) {
        self.items.push_back(Item::Reached(mark));
    }

    /// Takes what is first.
    pub fn pop(&mut self) -> Option<Item> {
        self.items.pop_front()
    }

    // The oldest of those that are worth least, and no more than the newcomer.
    fn give_up(&mut self, newcomer: Worth) -> Option<Event> {
        let candidates = [Worth::Passing, Worth::Beginning].into_iter().filter(|least| *least <= newcomer);
        for least in candidates {
            let place = self.items.iter().position(|item| matches!(item, Item::Event(old, _) if worth(old) == least));
            if let Some(Item::Event(old, _)) = place.and_then(|place| self.items.remove(place)) {
                return Some(old);
            }
        }
        None
    }
}

fn worth(event: &Event) -> Worth {
    match event {
        Event::Exited(..) | Event::Deleted(..) => Worth::End,
        Event::Created { .. } | Event::Started(..) | Event::OutOfMemory(_) => Worth::Beginning,
        Event::ExecAdded(_) | Event::Paused(_) | Event::Resumed(_) => Worth::Passing,
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use pod::{Exit, ProcessId};

    use super::*;

    fn process(number: usize) -> ProcessId {
        ProcessId { container_id: "c".into(), exec_id: number.to_string() }
    }

    fn started(number: usize) -> Event {
        Event::Started(process(number), 1)
    }

    fn exited(number: usize) -> Event {
        Event::Exited(process(number), 1, Exit { status: 0, at: UNIX_EPOCH, oom_killed: false })
    }

    fn push(queue: &mut Queue, event: Event) -> Option<Event> {
        queue.push(event, UNIX_EPOCH)
    }

    #[test]
    fn what_is_first_comes_first() {
        let mut queue = Queue::default();
        (0..5).for_each(|number| assert_eq!(push(&mut queue, started(number)), None));
        for number in 0..5 {
            assert!(matches!(queue.pop(), Some(Item::Event(event, _)) if event == started(number)));
        }
        assert!(queue.pop().is_none());
    }

    #[test]
    fn a_full_queue_gives_up_what_passes_then_what_began_and_no_end() {
        let mut queue = Queue::default();
        assert_eq!(push(&mut queue, started(0)), None);
        assert_eq!(push(&mut queue, Event::Paused("c".into())), None);
        (2..QUEUED_MAX).for_each(|number| assert_eq!(push(&mut queue, exited(number)), None));
        assert_eq!(push(&mut queue, exited(1)), Some(Event::Paused("c".into())));
        assert_eq!(push(&mut queue, exited(2)), Some(started(0)));
        assert_eq!(push(&mut queue, started(3)), Some(started(3)), "it is worth less than all that wait");
        assert_eq!(push(&mut queue, exited(4)), None);
        assert_eq!(queue.items.len(), QUEUED_MAX + 1);
    }

    #[test]
    fn what_passes_does_not_push_out_what_began() {
        let mut queue = Queue::default();
        (0..QUEUED_MAX).for_each(|number| assert_eq!(push(&mut queue, started(number)), None));
        let passing = Event::Resumed("c".into());
        assert_eq!(push(&mut queue, passing.clone()), Some(passing));
        assert_eq!(push(&mut queue, started(QUEUED_MAX)), Some(started(0)));
    }
}
