use super::{Family, Verdict, attr};
use crate::{netlink::Message, subnet::octets};

/// One of the sixteen 4-byte registers. A concatenated key is loaded into consecutive ones; an IPv6 address takes
/// four.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reg(pub u8);

impl Reg {
    fn number(self) -> u32 {
        u32::try_from(libc::NFT_REG32_00).unwrap_or_default() + u32::from(self.0)
    }
}

/// How a register is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Eq,
    Neq,
}

/// Packet metadata that a rule can load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    Mark,
    /// 16 bytes: four registers.
    InputName,
    /// 16 bytes: four registers.
    OutputName,
    L4Proto,
}

/// Facts about the connection that a rule can load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CtKey {
    State,
    Status,
    Mark,
}

/// Bits of [`CtKey::State`].
pub mod ct_state {
    pub const INVALID: u32 = 1;
    pub const ESTABLISHED: u32 = 2;
    pub const RELATED: u32 = 4;
    pub const NEW: u32 = 8;
}

/// Bits of [`CtKey::Status`].
pub mod ct_status {
    pub const DNAT: u32 = 1 << 5;
}

/// What a route lookup gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FibResult {
    AddressType,
}

/// What a rule does to a dynamic set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DynsetOp {
    /// Adds the element; an existing one stays as it is.
    Add,
    /// Adds the element, or renews an existing one's time (its value stays).
    Update,
    Delete,
}

/// A rule: expressions that run one after the other until one does not match.
#[derive(Clone)]
pub struct Rule {
    /// Of the packets' addresses.
    family: Family,
    expressions: Message,
    pub(crate) comment: Option<String>,
}

impl Default for Rule {
    fn default() -> Self {
        Self::new()
    }
}

impl Rule {
    /// A rule that sees IPv4 packets, or no addresses.
    pub fn new() -> Self {
        Self::of(Family::Ip)
    }

    /// A rule that sees packets of one family.
    pub fn of(family: Family) -> Self {
        Self { family, expressions: Message::fragment(), comment: None }
    }

    pub(crate) fn expressions(&self) -> &[u8] {
        self.expressions.as_bytes()
    }

    #[must_use]
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    fn expression(mut self, name: &str, fill: impl FnOnce(&mut Message)) -> Self {
        self.expressions.nest(attr::LIST_ELEM, |entry| {
            entry.str(attr::EXPR_NAME, name);
            entry.nest(attr::EXPR_DATA, fill);
        });
        self
    }

    fn payload(self, reg: Reg, base: i32, offset: u32, len: u32) -> Self {
        self.expression("payload", |m| {
            m.be32(1, reg.number()).be32(2, base.cast_unsigned()).be32(3, offset).be32(4, len);
        })
    }

    /// Loads the source address.
    #[must_use]
    pub fn saddr(self, reg: Reg) -> Self {
        let (offset, len) = if self.family == Family::Ip6 { (8, 16) } else { (12, 4) };
        self.payload(reg, libc::NFT_PAYLOAD_NETWORK_HEADER, offset, len)
    }

    /// Loads the destination address.
    #[must_use]
    pub fn daddr(self, reg: Reg) -> Self {
        let (offset, len) = if self.family == Family::Ip6 { (24, 16) } else { (16, 4) };
        self.payload(reg, libc::NFT_PAYLOAD_NETWORK_HEADER, offset, len)
    }

    /// Loads the type of an ICMP message of either family.
    #[must_use]
    pub fn icmp_type(self, reg: Reg) -> Self {
        self.payload(reg, libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1)
    }

    /// Loads the destination port of TCP, UDP or SCTP. Load the protocol first: packets without ports
    /// have other bytes there.
    #[must_use]
    pub fn dport(self, reg: Reg) -> Self {
        self.payload(reg, libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2)
    }

    /// Loads the transport protocol's number.
    #[must_use]
    pub fn l4proto(self, reg: Reg) -> Self {
        self.meta(reg, Meta::L4Proto)
    }

    #[must_use]
    pub fn meta(self, reg: Reg, key: Meta) -> Self {
        let key = meta_number(key);
        self.expression("meta", |m| {
            m.be32(2, key).be32(1, reg.number());
        })
    }

    /// Sets these bits of the packet's mark; `reg` is overwritten.
    #[must_use]
    pub fn set_mark_bits(self, reg: Reg, bits: u32) -> Self {
        self.meta(reg, Meta::Mark).bitwise(reg, !bits, bits).expression("meta", |m| {
            m.be32(2, meta_number(Meta::Mark)).be32(3, reg.number());
        })
    }

    /// Clears these bits of the packet's mark; `reg` is overwritten.
    #[must_use]
    pub fn clear_mark_bits(self, reg: Reg, bits: u32) -> Self {
        self.meta(reg, Meta::Mark).bitwise(reg, !bits, 0).expression("meta", |m| {
            m.be32(2, meta_number(Meta::Mark)).be32(3, reg.number());
        })
    }

    #[must_use]
    pub fn ct(self, reg: Reg, key: CtKey) -> Self {
        let key = match key {
            CtKey::State => libc::NFT_CT_STATE,
            CtKey::Status => libc::NFT_CT_STATUS,
            CtKey::Mark => libc::NFT_CT_MARK,
        };
        self.expression("ct", |m| {
            m.be32(2, key.cast_unsigned()).be32(1, reg.number());
        })
    }

    /// Goes on if the connection is in one of these states.
    #[must_use]
    pub fn ct_state(self, reg: Reg, states: u32) -> Self {
        self.ct(reg, CtKey::State).any_bit(reg, states)
    }

    /// Goes on if any of the bits is set; `reg` is overwritten.
    #[must_use]
    pub fn any_bit(self, reg: Reg, bits: u32) -> Self {
        self.bitwise(reg, bits, 0).cmp(reg, Op::Neq, &[0; 4])
    }

    /// `reg = (reg & mask) ^ xor`, in host order.
    #[must_use]
    pub fn bitwise(self, reg: Reg, mask: u32, xor: u32) -> Self {
        self.mask_bytes(reg, &mask.to_ne_bytes(), &xor.to_ne_bytes())
    }

    fn mask_bytes(self, reg: Reg, mask: &[u8], xor: &[u8]) -> Self {
        let len = u32::try_from(mask.len()).unwrap_or_default();
        self.expression("bitwise", |m| {
            m.be32(1, reg.number()).be32(2, reg.number()).be32(3, len);
            m.nest(4, |data| {
                data.bytes(attr::DATA_VALUE, mask);
            });
            m.nest(5, |data| {
                data.bytes(attr::DATA_VALUE, xor);
            });
        })
    }

    /// Goes on if the register's first bytes compare as said.
    #[must_use]
    pub fn cmp(self, reg: Reg, op: Op, value: &[u8]) -> Self {
        let op = match op {
            Op::Eq => libc::NFT_CMP_EQ,
            Op::Neq => libc::NFT_CMP_NEQ,
        };
        self.expression("cmp", |m| {
            m.be32(1, reg.number()).be32(2, op.cast_unsigned());
            m.nest(3, |data| {
                data.bytes(attr::DATA_VALUE, value);
            });
        })
    }

    /// Goes on if the address in the register is (not) in the range; `reg` is overwritten.
    #[must_use]
    pub fn in_subnet(self, reg: Reg, op: Op, range: crate::Subnet) -> Self {
        let (mask, base) = (octets(range.mask()), octets(range.base()));
        self.mask_bytes(reg, &mask, &vec![0; mask.len()]).cmp(reg, op, &base)
    }

    /// Goes on if the packet is for an interface of this name, or a name with this prefix and `*`.
    #[must_use]
    pub fn interface(self, reg: Reg, key: Meta, op: Op, name: &str) -> Self {
        let mut value = name.trim_end_matches('*').as_bytes().to_vec();
        if !name.ends_with('*') {
            value.resize(16, 0);
        }
        self.meta(reg, key).cmp(reg, op, &value)
    }

    fn lookup_expression(self, key: Reg, set: &str, to: Option<u32>, inverted: bool) -> Self {
        self.expression("lookup", |m| {
            m.str(1, set).be32(2, key.number());
            if let Some(to) = to {
                m.be32(3, to);
            }
            if inverted {
                m.be32(5, libc::NFT_LOOKUP_F_INV.cast_unsigned());
            }
        })
    }

    /// Goes on if the key is in the set.
    #[must_use]
    pub fn lookup(self, key: Reg, set: &str) -> Self {
        self.lookup_expression(key, set, None, false)
    }

    /// Goes on if the key is not in the set.
    #[must_use]
    pub fn lookup_not(self, key: Reg, set: &str) -> Self {
        self.lookup_expression(key, set, None, true)
    }

    /// Loads the value under the key, or stops the rule when there is none.
    #[must_use]
    pub fn map(self, key: Reg, map: &str, to: Reg) -> Self {
        self.lookup_expression(key, map, Some(to.number()), false)
    }

    /// Does what the map says under the key, or stops the rule when it says nothing.
    #[must_use]
    pub fn vmap(self, key: Reg, map: &str) -> Self {
        let verdict = libc::NFT_REG_VERDICT.cast_unsigned();
        self.lookup_expression(key, map, Some(verdict), false)
    }

    /// A random number below `modulus`, in host order.
    #[must_use]
    pub fn random(self, reg: Reg, modulus: u32) -> Self {
        self.expression("numgen", |m| {
            m.be32(1, reg.number()).be32(2, modulus).be32(3, libc::NFT_NG_RANDOM.cast_unsigned()).be32(4, 0);
        })
    }

    /// What routing says of the destination address (see RTN_LOCAL and others of libc), in host order.
    #[must_use]
    pub fn fib_daddr(self, reg: Reg, result: FibResult) -> Self {
        const DADDR: u32 = 1 << 1;
        let result = match result {
            FibResult::AddressType => 3,
        };
        self.expression("fib", |m| {
            m.be32(1, reg.number()).be32(2, result).be32(3, DADDR);
        })
    }

    /// The same for the source address.
    #[must_use]
    pub fn fib_saddr(self, reg: Reg, result: FibResult) -> Self {
        const SADDR: u32 = 1;
        let result = match result {
            FibResult::AddressType => 3,
        };
        self.expression("fib", |m| {
            m.be32(1, reg.number()).be32(2, result).be32(3, SADDR);
        })
    }

    /// Adds to, renews in or deletes from a dynamic set. With a map, `data` has to name loaded registers
    /// also for a deletion, which ignores them.
    #[must_use]
    pub fn dynset(self, op: DynsetOp, set: &str, key: Reg, data: Option<Reg>, timeout_ms: Option<u64>) -> Self {
        let op = match op {
            DynsetOp::Add => 0,
            DynsetOp::Update => 1,
            DynsetOp::Delete => 2,
        };
        self.expression("dynset", |m| {
            m.str(1, set).be32(3, op).be32(4, key.number());
            if let Some(data) = data {
                m.be32(5, data.number());
            }
            if let Some(timeout) = timeout_ms {
                m.be64(6, timeout);
            }
        })
    }

    /// Goes on for at most `rate` packets a second, after a burst.
    #[must_use]
    pub fn limit_per_second(self, rate: u64, burst: u32) -> Self {
        self.expression("limit", |m| {
            m.be64(1, rate).be64(2, 1).be32(3, burst).be32(4, libc::NFT_LIMIT_PKTS.cast_unsigned());
        })
    }

    /// Counts the packets that got here.
    #[must_use]
    pub fn counter(self) -> Self {
        self.expression("counter", |_| {})
    }

    /// Puts a constant into a register.
    #[must_use]
    pub fn immediate(self, reg: Reg, value: &[u8]) -> Self {
        self.expression("immediate", |m| {
            m.be32(1, reg.number());
            m.nest(2, |data| {
                data.bytes(attr::DATA_VALUE, value);
            });
        })
    }

    /// Rewrites the destination to the address and port in these registers.
    #[must_use]
    pub fn dnat(self, address: Reg, port: Reg) -> Self {
        let family = u32::from(self.family.number());
        self.expression("nat", |m| {
            m.be32(1, libc::NFT_NAT_DNAT.cast_unsigned())
                .be32(2, family)
                .be32(3, address.number())
                .be32(5, port.number());
        })
    }

    /// Rewrites the destination to this machine, at the port in the register.
    #[must_use]
    pub fn redirect(self, port: Reg) -> Self {
        self.expression("redir", |m| {
            m.be32(1, port.number());
        })
    }

    /// Rewrites the source to the address of the interface that the packet leaves by, with a random
    /// port: sequential ones collide when many connections start at once.
    #[must_use]
    pub fn masquerade(self) -> Self {
        const RANDOM_FULLY: u32 = 1 << 4;
        self.expression("masq", |m| {
            m.be32(1, RANDOM_FULLY);
        })
    }

    /// Answers with ICMP "port unreachable".
    #[must_use]
    pub fn reject(self) -> Self {
        let port_unreachable = if self.family == Family::Ip6 { 4 } else { 3 };
        self.expression("reject", |m| {
            m.be32(1, libc::NFT_REJECT_ICMP_UNREACH.cast_unsigned()).u8(2, port_unreachable);
        })
    }

    #[must_use]
    pub fn verdict(self, verdict: Verdict) -> Self {
        self.expression("immediate", |m| {
            m.be32(1, libc::NFT_REG_VERDICT.cast_unsigned());
            m.nest(2, |data| verdict.encode(data));
        })
    }
}

fn meta_number(key: Meta) -> u32 {
    let number = match key {
        Meta::Mark => libc::NFT_META_MARK,
        Meta::InputName => libc::NFT_META_IIFNAME,
        Meta::OutputName => libc::NFT_META_OIFNAME,
        Meta::L4Proto => libc::NFT_META_L4PROTO,
    };
    number.cast_unsigned()
}
