//! Values used by several messages: wrapped integers, key/value pairs, namespaces, security profiles.

/// An integer that may be absent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Int64Value {
    #[prost(int64, tag = "1")]
    pub value: i64,
}

/// An unsigned integer that may be absent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UInt64Value {
    #[prost(uint64, tag = "1")]
    pub value: u64,
}

/// An environment variable; the value need not be UTF-8.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Protocol {
    Tcp = 0,
    Udp = 1,
    Sctp = 2,
}

/// Whose namespace a container uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum NamespaceMode {
    /// Shared by the containers of the pod.
    Pod = 0,
    /// The container's own.
    Container = 1,
    /// The node's.
    Node = 2,
    /// That of the container named by `target_id` (ephemeral containers).
    Target = 3,
}

/// A range of user or group ids of the host and what they are in the container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IdMapping {
    #[prost(uint32, tag = "1")]
    pub host_id: u32,
    #[prost(uint32, tag = "2")]
    pub container_id: u32,
    #[prost(uint32, tag = "3")]
    pub length: u32,
}

/// A pod's user namespace and its id mappings.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UserNamespace {
    #[prost(enumeration = "NamespaceMode", tag = "1")]
    pub mode: i32,
    #[prost(message, repeated, tag = "2")]
    pub uids: Vec<IdMapping>,
    #[prost(message, repeated, tag = "3")]
    pub gids: Vec<IdMapping>,
}

/// Which namespaces a sandbox or container uses.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NamespaceOption {
    #[prost(enumeration = "NamespaceMode", tag = "1")]
    pub network: i32,
    #[prost(enumeration = "NamespaceMode", tag = "2")]
    pub pid: i32,
    #[prost(enumeration = "NamespaceMode", tag = "3")]
    pub ipc: i32,
    /// Container whose PID namespace is used in mode `Target`.
    #[prost(string, tag = "4")]
    pub target_id: String,
    #[prost(message, optional, tag = "5")]
    pub userns_options: Option<UserNamespace>,
}

/// How the image's group file and the requested supplemental groups combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum SupplementalGroupsPolicy {
    /// The requested groups and those the image's `/etc/group` gives the user.
    Merge = 0,
    /// Only the requested groups.
    Strict = 1,
}

/// A seccomp or AppArmor profile.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SecurityProfile {
    #[prost(enumeration = "ProfileType", tag = "1")]
    pub profile_type: i32,
    /// Absolute path of the profile for type `Localhost`.
    #[prost(string, tag = "2")]
    pub localhost_ref: String,
}

/// Where a seccomp or AppArmor profile comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ProfileType {
    /// The runtime's own profile. Being zero, it is also what a profile with no type set says.
    RuntimeDefault = 0,
    Unconfined = 1,
    /// A file on the node, named by `localhost_ref`.
    Localhost = 2,
}

/// SELinux label parts.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SeLinuxOption {
    #[prost(string, tag = "1")]
    pub user: String,
    #[prost(string, tag = "2")]
    pub role: String,
    #[prost(string, tag = "3")]
    pub r#type: String,
    #[prost(string, tag = "4")]
    pub level: String,
}

/// The signal that asks a container to stop. The numbers are CRI's own, not the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Signal {
    /// The image's stop signal, else SIGTERM.
    RuntimeDefault = 0,
    Sigabrt = 1,
    Sigalrm = 2,
    Sigbus = 3,
    Sigchld = 4,
    Sigcld = 5,
    Sigcont = 6,
    Sigfpe = 7,
    Sighup = 8,
    Sigill = 9,
    Sigint = 10,
    Sigio = 11,
    Sigiot = 12,
    Sigkill = 13,
    Sigpipe = 14,
    Sigpoll = 15,
    Sigprof = 16,
    Sigpwr = 17,
    Sigquit = 18,
    Sigsegv = 19,
    Sigstkflt = 20,
    Sigstop = 21,
    Sigsys = 22,
    Sigterm = 23,
    Sigtrap = 24,
    Sigtstp = 25,
    Sigttin = 26,
    Sigttou = 27,
    Sigurg = 28,
    Sigusr1 = 29,
    Sigusr2 = 30,
    Sigvtalrm = 31,
    Sigwinch = 32,
    Sigxcpu = 33,
    Sigxfsz = 34,
    Sigrtmin = 35,
    SigrtminPlus1 = 36,
    SigrtminPlus2 = 37,
    SigrtminPlus3 = 38,
    SigrtminPlus4 = 39,
    SigrtminPlus5 = 40,
    SigrtminPlus6 = 41,
    SigrtminPlus7 = 42,
    SigrtminPlus8 = 43,
    SigrtminPlus9 = 44,
    SigrtminPlus10 = 45,
    SigrtminPlus11 = 46,
    SigrtminPlus12 = 47,
    SigrtminPlus13 = 48,
    SigrtminPlus14 = 49,
    SigrtminPlus15 = 50,
    SigrtmaxMinus14 = 51,
    SigrtmaxMinus13 = 52,
    SigrtmaxMinus12 = 53,
    SigrtmaxMinus11 = 54,
    SigrtmaxMinus10 = 55,
    SigrtmaxMinus9 = 56,
    SigrtmaxMinus8 = 57,
    SigrtmaxMinus7 = 58,
    SigrtmaxMinus6 = 59,
    SigrtmaxMinus5 = 60,
    SigrtmaxMinus4 = 61,
    SigrtmaxMinus3 = 62,
    SigrtmaxMinus2 = 63,
    SigrtmaxMinus1 = 64,
    Sigrtmax = 65,
}
