//! How much network a pod can have: the host refuses more by name, and so does the agent.

/// Most interfaces of a network.
pub const INTERFACES_MAX: usize = 32;
/// Most addresses of one interface.
pub const ADDRESSES_MAX: usize = 256;
/// Most routes, in all tables together.
pub const ROUTES_MAX: usize = 1024;
/// Most ways of one route.
pub const NEXT_HOPS_MAX: usize = 64;
/// Most neighbours.
pub const NEIGHBOURS_MAX: usize = 1024;
/// Most rules.
pub const RULES_MAX: usize = 256;
