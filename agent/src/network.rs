//! The pod's network in the guest: interfaces, addresses, routes, neighbours and rules, as the host read them from the pod's namespace.
//!
//! ```text
//!  host --Network--> Network::parse -- plan (what is there, what is wanted -> steps) --> the kernel, one message a step
//! ```
//!
//! Devices are there before PID 1 is, or come later ([`hotplug`]), and are known by their MACs alone. What the network names becomes as it says, whatever it was
//! before; the rest is left alone: other interfaces, what a router told, the table `local`, link-local addresses, rules and neighbours of
//! a container's. Routes that the kernel makes for addresses are wanted or not as all others are: the host tells them too, and some
//! plugins take them away. So the same network can be applied again, and a changed one while the pod runs.
//!
//! A network that cannot be (a wrong field, a MAC that no device has) is refused before anything is changed. When the kernel refuses a step, the
//! steps before it are done and stay so; the error names it.
//!
//! The loopback interface is not the network's: [`boot`](crate::boot) raises it, so that a pod without a network has it too.

use agent_protocol::{
    messages as m,
    network::{NEIGHBOURS_MAX, ROUTES_MAX, RULES_MAX},
};
use netlink::{
    NetlinkError, Socket,
    core::{Emitable, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Parseable},
    packet::{address::AddressMessage, route::RouteMessage, rule::RuleMessage},
};

mod address;
mod device;
mod field;
mod hop;
mod hotplug;
mod interface;
mod message;
mod neighbour;
mod plan;
mod route;
mod rule;

use address::Address;
use device::{Device, Devices, Request};
pub use hotplug::Places;
use interface::Interface;
use message::{Kind, Message};
use neighbour::Neighbour;
use plan::Step;
use route::Route;
use rule::Rule;

/// Why the network is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A field is wrong.
    #[error("{field} {value:?} is not usable: {rule}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What it says.
        value: String,
        /// What would be right.
        rule: &'static str,
    },
    /// A list is too long.
    #[error("{count} {what} are too many: at most {max} are taken")]
    TooMany {
        /// Which.
        what: &'static str,
        /// How long it is.
        count: usize,
        /// How long it may be.
        max: usize,
    },
    /// The machine lacks a device.
    #[error("the machine has no network device with the MAC {mac} of {name}: was it given to the machine?")]
    NoDevice {
        /// The interface that it would be.
        name: String,
        /// Its hardware address.
        mac: String,
    },
    /// What is there cannot be read.
    #[error("cannot list the guest's {what}: is rtnetlink in the guest kernel?")]
    List {
        /// Of what.
        what: &'static str,
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// The kernel refused a step.
    #[error("cannot {step}: does it fit the rest of the pod's network, and the guest kernel?")]
    Refused {
        /// Which.
        step: String,
        /// Its words.
        #[source]
        source: NetlinkError,
    },
}

impl NetworkError {
    /// The request is wrong; nothing was done.
    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::Invalid { .. } | Self::TooMany { .. })
    }
}

/// A checked network.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Network {
    interfaces: Vec<Interface>,
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
    rules: Vec<Rule>,
}

impl Network {
    /// Checks everything; changes nothing.
    ///
    /// # Errors
    /// The first field that cannot be right.
    pub fn parse(wanted: &m::Network) -> Result<Self, NetworkError> {
        field::at_most("routes of the network", &wanted.routes, ROUTES_MAX)?;
        field::at_most("neighbours of the network", &wanted.neighbours, NEIGHBOURS_MAX)?;
        field::at_most("rules of the network", &wanted.rules, RULES_MAX)?;
        let network = Self {
            interfaces: Interface::parse_all(&wanted.interfaces)?,
            routes: wanted.routes.iter().map(Route::parse).collect::<Result<_, _>>()?,
            neighbours: wanted.neighbours.iter().map(Neighbour::parse).collect::<Result<_, _>>()?,
            rules: wanted.rules.iter().map(Rule::parse).collect::<Result<_, _>>()?,
        };
        for hop in network.routes.iter().flat_map(|route| &route.hops) {
            network.knows("interface of a route", &hop.interface)?;
        }
        for neighbour in &network.neighbours {
            network.knows("interface of a neighbour", &neighbour.interface)?;
        }
        Ok(network)
    }

    fn knows(&self, field: &'static str, name: &str) -> Result<(), NetworkError> {
        if name == field::LOOPBACK || self.interfaces.iter().any(|interface| interface.name == name) {
            return Ok(());
        }
        Err(field::invalid(field, name, "one of the network's interfaces, or lo"))
    }

    /// Lets go of the machine's devices that are no interface of it any more, in the network namespace of the calling thread; blocking.
    ///
    /// # Errors
    /// What there is cannot be listed.
    pub fn let_go_of_others(&self, places: &Places) -> Result<(), NetworkError> {
        let mut kernel = Socket::open().map_err(cannot_list("interfaces"))?;
        for device in devices(&mut kernel)? {
            if self.interfaces.iter().any(|interface| device.is_known_by(&interface.mac)) {
                continue;
            }
            match places.let_go(&device.name) {
                Ok(true) => log::info!("the interface {} has gone", device.name),
                Ok(false) => {}
                Err(error) => log::warn!("the interface {}, which has gone, cannot be let go: {error}", device.name),
            }
        }
        Ok(())
    }

    /// Makes it so, in the network namespace of the calling thread; blocking.
    ///
    /// # Errors
    /// A device is missing, with nothing done; or the kernel refuses a step, with those before it done.
    pub fn apply(&self, places: &Places) -> Result<(), NetworkError> {
        if *self == Self::default() {
            return Ok(());
        }
        let mut kernel = Socket::open().map_err(cannot_list("interfaces"))?;
        let mut links = devices(&mut kernel)?;
        if self.interfaces.iter().any(|interface| interface.device(&links).is_err()) {
            places.look().unwrap_or_else(|error| log::warn!("cannot look for new devices: {error}"));
            links = devices(&mut kernel)?;
        }
        let devices = Devices::find(&self.interfaces, &links)?;
        let addresses =
            list(&mut kernel, (Kind::GetAddress, &AddressMessage::default()), Kind::NewAddress, Address::of);
        let addresses = addresses.map_err(cannot_list("addresses"))?;
        for step in plan::interfaces(&self.interfaces, &links, &addresses) {
            carry_out(&step, &mut kernel, &devices)?;
        }
        let (routes, rules) = self.routing(&mut kernel, &devices)?;
        for step in plan::routes(self, &routes, &rules) {
            carry_out(&step, &mut kernel, &devices)?;
        }
        Ok(())
    }

    /// What there is; rules only if some are wanted.
    fn routing(&self, kernel: &mut Socket, devices: &Devices) -> Result<(Vec<Route>, Vec<Rule>), NetworkError> {
        let route = |message: &RouteMessage| Route::of(message, devices);
        let routes = list(kernel, (Kind::GetRoute, &RouteMessage::default()), Kind::NewRoute, route);
        let routes = routes.map_err(cannot_list("routes"))?;
        if self.rules.is_empty() {
            return Ok((routes, Vec::new()));
        }
        let rules = list(kernel, (Kind::GetRule, &RuleMessage::default()), Kind::NewRule, Rule::of);
        Ok((routes, rules.map_err(cannot_list("rules"))?))
    }
}

fn devices(kernel: &mut Socket) -> Result<Vec<Device>, NetworkError> {
    let itself = |device: &Device| Some(device.clone());
    list(kernel, (Kind::GetLink, &Request::default()), Kind::NewLink, itself).map_err(cannot_list("interfaces"))
}

/// All that the kernel answers to the question with messages of this kind, as far as it is something to us.
fn list<T: Parseable<[u8]>, U>(
    kernel: &mut Socket,
    (get, question): (Kind, &impl Emitable),
    new: Kind,
    of: impl Fn(&T) -> Option<U>,
) -> netlink::Result<Vec<U>> {
    let all = kernel.dump(Message::new(get, question))?;
    Ok(all.iter().filter_map(|message| message.read(new)).filter_map(|item| of(&item)).collect())
}

fn carry_out(step: &Step, kernel: &mut Socket, devices: &Devices) -> Result<(), NetworkError> {
    let (message, flags) = message(step, devices);
    match kernel.change(message, flags) {
        Ok(()) => Ok(()),
        // It is as it should be: another made it meanwhile, or the kernel dropped it together with something else.
        Err(error) if adds(step) && error.is_there_already() => Ok(()),
        Err(error) if removes(step) && error.is_nothing_there() => Ok(()),
        Err(source) => Err(NetworkError::Refused { step: step.to_string(), source }),
    }
}

fn message(step: &Step, devices: &Devices) -> (Message, u16) {
    let address = |kind, name, address: &Address| Message::new(kind, &address.message(devices.index(name)));
    let route = |kind, route: &Route| Message::new(kind, &route.message(devices));
    match step {
        Step::MoveAside { index, .. } => {
            let request = Request { index: *index, name: Some(device::aside(*index)), ..Request::default() };
            (Message::new(Kind::SetLink, &request), 0)
        }
        Step::NoOwnLinkLocal { index, .. } => {
            let request = Request { index: *index, no_own_link_local: true, ..Request::default() };
            (Message::new(Kind::SetLink, &request), 0)
        }
        Step::SetInterface(change) => (Message::new(Kind::SetLink, &change.message()), 0),
        Step::RemoveAddress(name, own) => (address(Kind::DelAddress, name, own), 0),
        Step::AddAddress(name, own) => (address(Kind::NewAddress, name, own), NLM_F_CREATE | NLM_F_REPLACE),
        Step::RemoveRoute(own) => (route(Kind::DelRoute, own), 0),
        Step::AddRoute(own) => (route(Kind::NewRoute, own), NLM_F_CREATE | NLM_F_APPEND),
        Step::ReplaceRoute(own) => (route(Kind::NewRoute, own), NLM_F_CREATE | NLM_F_REPLACE),
        Step::SetNeighbour(own) => {
            (Message::new(Kind::NewNeighbour, &own.message(devices)), NLM_F_CREATE | NLM_F_REPLACE)
        }
        Step::AddRule(rule) => (Message::new(Kind::NewRule, &rule.message()), NLM_F_CREATE | NLM_F_EXCL),
    }
}

fn adds(step: &Step) -> bool {
    matches!(step, Step::AddAddress(..) | Step::AddRoute(_) | Step::AddRule(_))
}

fn removes(step: &Step) -> bool {
    matches!(step, Step::RemoveAddress(..) | Step::RemoveRoute(_))
}

fn cannot_list(what: &'static str) -> impl Fn(NetlinkError) -> NetworkError {
    move |source| NetworkError::List { what, source }
}

#[cfg(test)]
mod tests;
