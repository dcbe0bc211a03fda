//! The process that outlives the appliance by a moment, to take one rule away: what it may do until then, and then.
//!
//! It is the appliance's user with CAP_NET_ADMIN instead of CAP_NET_RAW, and reaches no file at all. It has two descriptors
//! open, and the system calls to use these: to hear that the appliance is gone, and to say one thing to the kernel.

use caps::Capability;

use super::user::User;
use super::{PrivilegeError, bound_capabilities, gain_nothing, keep_capabilities};
use super::{landlock, system_calls, user};

const KEPT: [Capability; 1] = [Capability::CAP_NET_ADMIN];

/// Who it becomes; looked up while files can be read.
#[derive(Debug)]
pub struct Keeper {
    user: Option<User>,
}

impl Keeper {
    /// `user`: as the appliance's, `process.user`.
    pub fn prepare(user: Option<&str>) -> Result<Keeper, PrivilegeError> {
        Ok(Keeper { user: user::wanted(user)? })
    }

    /// To be called in that process, once it has open what it uses.
    pub fn confine(&self) -> Result<(), PrivilegeError> {
        // While it is still root: afterwards the bounding set cannot be changed.
        bound_capabilities(&KEPT);
        if let Some(user) = &self.user {
            user::become_user(user)?;
        }
        keep_capabilities(&KEPT)?;
        gain_nothing()?;
        landlock::restrict_to_nothing();
        system_calls::restrict_keeper()?;
        Ok(())
    }
}
