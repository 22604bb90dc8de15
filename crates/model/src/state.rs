//! The states that EC2 shows, each with its legal transitions.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! state {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }
     transitions { $($from:ident => $($to:ident)|+),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// EC2's word for the state.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// Whether `next` may follow this state.
            pub fn may_become(self, next: Self) -> bool {
                matches!((self, next), $((Self::$from, $(Self::$to)|+))|+)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

state!(
    /// ```text
    /// creating ─► available ◄─► in-use
    ///    │            │
    ///    └─► error ───┴─► deleting ─► deleted
    /// ```
    VolumeState {
        Creating = "creating",
        Available = "available",
        InUse = "in-use",
        Deleting = "deleting",
        Deleted = "deleted",
        Error = "error",
    }
    transitions {
        Creating => Available | Error | Deleting,
        Available => InUse | Deleting,
        InUse => Available,
        Error => Deleting,
        Deleting => Deleted,
    }
);

/// What operators want of a server.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Duty {
    #[default]
    Serving,
    /// It keeps what it has and gets nothing new.
    Cordoned,
    /// As cordoned, and what it has moves to other servers.
    Draining,
}

impl Duty {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
        }
    }
}

state!(
    /// `attaching ─► attached ─► detaching ─► detached`; a forced detach may start anywhere.
    AttachmentState {
        Attaching = "attaching",
        Attached = "attached",
        Detaching = "detaching",
        Detached = "detached",
    }
    transitions {
        Attaching => Attached | Detaching,
        Attached => Detaching,
        Detaching => Detached,
    }
);

state!(
    /// `modifying ─► optimizing ─► completed`, or `failed` from either of the first two. The new
    /// size is usable as soon as `optimizing` begins.
    ModificationState {
        Modifying = "modifying",
        Optimizing = "optimizing",
        Completed = "completed",
        Failed = "failed",
    }
    transitions {
        Modifying => Optimizing | Completed | Failed,
        Optimizing => Completed | Failed,
    }
);
