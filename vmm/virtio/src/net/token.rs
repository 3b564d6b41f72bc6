//! What a network device's thread waits for, and the tokens by which it is told. Pure.

pub(super) const STOP: u64 = u64::MAX;
/// Of the timer of limits.
pub(super) const ALARM: u64 = u64::MAX - 1;
pub(super) const CONTROL_KICK: u64 = u64::MAX - 2;
/// Of the timer of news that wait.
pub(super) const NEWS_OVERDUE: u64 = u64::MAX - 3;

/// Tokens of a pair: its number times this, and one of the kinds below.
const PAIR_TOKENS: u64 = 4;
pub(super) const RECEIVE_KICK: u64 = 0;
pub(super) const TRANSMIT_KICK: u64 = 1;
pub(super) const TAP: u64 = 2;

/// What has happened; pairs are told by their number.
pub(super) enum Event {
    Stop,
    Alarm,
    ControlKick,
    NewsOverdue,
    ReceiveKick(usize),
    TransmitKick(usize),
    Tap(usize),
}

/// What a token tells.
pub(super) fn event_of(token: u64) -> Event {
    let pair = usize::try_from(token / PAIR_TOKENS).unwrap_or(usize::MAX);
    match (token, token % PAIR_TOKENS) {
        (STOP, _) => Event::Stop,
        (ALARM, _) => Event::Alarm,
        (CONTROL_KICK, _) => Event::ControlKick,
        (NEWS_OVERDUE, _) => Event::NewsOverdue,
        (_, RECEIVE_KICK) => Event::ReceiveKick(pair),
        (_, TRANSMIT_KICK) => Event::TransmitKick(pair),
        _ => Event::Tap(pair),
    }
}

/// The token of an event of this kind at a pair.
pub(super) fn token(pair: usize, kind: u64) -> u64 {
    pair as u64 * PAIR_TOKENS + kind
}
