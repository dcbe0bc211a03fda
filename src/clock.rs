//! Time as the cores see it: an argument, never a call.
//!
//! [`Timestamp`] is wall time in milliseconds; leases, tokens and timelines carry it and it survives a restart.
//! [`Clock`] reads the wall clock once, at start, and from then on follows the monotonic clock, so that an NTP
//! step while the appliance runs neither expires a lease nor revives one.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Milliseconds since the Unix epoch. In JSON an RFC 3339 string, in the store an integer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    pub const fn as_millis(self) -> u64 {
        self.0
    }

    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Time passed since `earlier`; zero if `earlier` lies ahead.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // humantime formats up to the year 9999; a later time is shown as that limit rather than failing.
        let millis = self.0.min(253_402_300_799_000);
        let time = UNIX_EPOCH + Duration::from_millis(millis);
        write!(formatter, "{}", humantime::format_rfc3339_millis(time))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)?;
        let since_epoch = time.duration_since(UNIX_EPOCH).map_err(serde::de::Error::custom)?;
        Ok(Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// Wall time at start plus monotonic time since.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    started_wall: Timestamp,
}

impl Clock {
    pub fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            started: Instant::now(),
            started_wall: Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    pub fn now(&self) -> Timestamp {
        self.started_wall.plus(self.started.elapsed())
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_survives_json() {
        let then = Timestamp::from_millis(1_795_000_000_123);
        let text = serde_json::to_string(&then).unwrap();
        assert_eq!(text, "\"2026-11-18T11:06:40.123Z\"");
        assert_eq!(serde_json::from_str::<Timestamp>(&text).unwrap(), then);
    }

    #[test]
    fn arithmetic_saturates() {
        let end = Timestamp::from_millis(u64::MAX);
        assert_eq!(end.plus(Duration::from_secs(1)), end);
        assert_eq!(Timestamp::from_millis(1).since(end), Duration::ZERO);
        assert!(!end.to_string().is_empty());
    }
}
