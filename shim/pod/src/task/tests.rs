//! Random interleavings of orders, waits and the machine's death against the owner task: everybody who waits is told, and all the same.

use proptest::prelude::*;
use tokio::net::UnixStream;

use super::*;

type Answer = oneshot::Receiver<Result<Exit, PodError>>;

/// What a handle may order, with the process that it is about.
#[derive(Debug, Clone, Copy)]
enum Call {
    Enter,
    Happens(Event),
    Exits(u32),
    Wait,
    MachineDies,
}

fn any_call() -> impl Strategy<Value = Call> {
    let exit = |status| Exit { status, at: SystemTime::UNIX_EPOCH, oom_killed: false };
    prop_oneof![
        4 => Just(Call::Enter),
        4 => Just(Call::Happens(Event::Made)),
        1 => Just(Call::Happens(Event::MakeFailed)),
        3 => Just(Call::Happens(Event::StartAsked)),
        3 => Just(Call::Happens(Event::Started)),
        1 => (0_u32..256).prop_map(move |status| Call::Happens(Event::StartFailed(exit(status)))),
        3 => (0_u32..256).prop_map(Call::Exits),
        2 => Just(Call::Happens(Event::DeleteAsked)),
        2 => Just(Call::Happens(Event::Deleted)),
        1 => Just(Call::Happens(Event::DeleteFailed)),
        6 => Just(Call::Wait),
        1 => Just(Call::MachineDies),
    ]
}

fn any_process() -> impl Strategy<Value = ProcessId> {
    (0_u8..2, 0_u8..2).prop_map(|(container, exec)| ProcessId {
        container_id: format!("c{container}"),
        exec_id: if exec == 0 { String::new() } else { "e".to_owned() },
    })
}

/// The task of a pod without a guest, and the end of the socket with which its machine dies.
struct Owner {
    orders: mpsc::UnboundedSender<Order>,
    machine: Machine,
    vmm: Option<UnixStream>,
    /// Who waits, and in which life of the process.
    waits: Vec<(ProcessId, u32, Answer)>,
    lives: BTreeMap<ProcessId, u32>,
}

impl Owner {
    fn new() -> Self {
        let (ours, vmm) = UnixStream::pair().expect("a pair");
        let machine = Machine::converse(ours, None);
        let (orders, inbox) = mpsc::unbounded_channel();
        tokio::spawn(Task::new(inbox, machine.clone(), Acquired::default()).run());
        Self { orders, machine, vmm: Some(vmm), waits: Vec::new(), lives: BTreeMap::new() }
    }

    async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> T {
        let (reply, answer) = oneshot::channel();
        self.orders.send(order(reply)).expect("the task runs");
        answer.await.expect("every order is answered")
    }

    async fn call(&mut self, process: ProcessId, call: Call) {
        match call {
            Call::Enter => {
                if self.ask(|reply| Order::Enter(process.clone(), reply)).await.is_ok() {
                    *self.lives.entry(process).or_default() += 1;
                }
            }
            Call::Happens(event) => drop(self.ask(|reply| Order::Apply(process, event, reply)).await),
            Call::Exits(status) => {
                let exit = Exit { status, at: SystemTime::UNIX_EPOCH, oom_killed: false };
                self.orders.send(Order::Exited(process, exit)).expect("the task runs");
            }
            Call::Wait => {
                let (reply, answer) = oneshot::channel();
                self.orders.send(Order::Wait(process.clone(), reply)).expect("the task runs");
                let life = self.lives.get(&process).copied().unwrap_or_default();
                self.waits.push((process, life, answer));
            }
            Call::MachineDies => self.die().await,
        }
    }

    async fn die(&mut self) {
        drop(self.vmm.take());
        self.machine.gone().await;
    }

    /// The end: the machine dies, and what was still being made or deleted fails, as it does without a machine. Who waits for a process that is not
    /// there any more was told before.
    async fn end(mut self) -> Vec<(ProcessId, u32, Answer)> {
        for (process, life, answer) in &self.waits {
            let missing = self.ask(|reply| Order::Look(process.clone(), reply)).await.is_err();
            assert!(!missing || !answer.is_empty(), "{process} is gone, and somebody waits for it in its life {life}");
        }
        self.die().await;
        for process in self.lives.keys() {
            for failure in [Event::MakeFailed, Event::DeleteFailed] {
                let _ = self.ask(|reply| Order::Apply(process.clone(), failure, reply)).await;
            }
        }
        self.waits
    }
}

/// Every answer is there, and those to one life of a process agree.
fn judge(waits: Vec<(ProcessId, u32, Answer)>) -> Result<(), TestCaseError> {
    let mut told = BTreeMap::new();
    for (process, life, mut answer) in waits {
        let answer = answer.try_recv();
        prop_assert!(answer.is_ok(), "{process} in its life {life}: somebody waits for ever");
        if let Ok(Ok(exit)) = answer {
            let first = *told.entry((process.clone(), life)).or_insert(exit);
            prop_assert_eq!(first, exit, "{} in its life {}", process, life);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn everybody_who_waits_is_told_and_all_the_same(calls in prop::collection::vec((any_process(), any_call()), 0..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let waits = runtime.block_on(async {
            let mut owner = Owner::new();
            for (process, call) in calls {
                owner.call(process, call).await;
            }
            owner.end().await
        });
        judge(waits)?;
    }
}
