use super::{Element, Family, Rule, Set, attr, comment_data, message_type, nfgenmsg};
use crate::{
    Error, Result,
    netlink::{Message, NetlinkError, Socket},
};

/// Room for elements in one message. An attribute's length has 16 bits, and the list is an attribute.
const ELEMENTS_PER_MESSAGE: usize = 60_000;

/// What kind of decisions a base chain makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    Filter,
    Nat,
}

/// Where in a packet's way a base chain sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// A chain that packets enter by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChain {
    pub kind: ChainKind,
    pub hook: Hook,
    /// Lower runs first; destination NAT is at -100, filtering at 0, source NAT at 100.
    pub priority: i32,
}

/// Changes to one table that take effect together or not at all.
#[derive(Clone)]
pub struct Batch {
    family: Family,
    table: String,
    messages: Vec<Message>,
    next_set_id: u32,
}

impl Batch {
    pub fn new(family: Family, table: impl Into<String>) -> Self {
        let header = nfgenmsg(0, u16::try_from(libc::NFNL_SUBSYS_NFTABLES).unwrap_or_default());
        let begin = u16::try_from(libc::NFNL_MSG_BATCH_BEGIN).unwrap_or_default();
        Self { family, table: table.into(), messages: vec![Message::new(begin, 0, &header)], next_set_id: 1 }
    }

    /// True if nothing was added.
    pub fn is_empty(&self) -> bool {
        self.messages.len() == 1
    }

    /// Bytes that will be sent.
    pub fn size(&self) -> usize {
        self.messages.iter().map(Message::len).sum()
    }

    fn push(&mut self, kind: i32, flags: i32, fill: impl FnOnce(&mut Message, &str)) {
        let header = nfgenmsg(self.family.number(), 0);
        let mut message = Message::new(message_type(kind), flags, &header);
        fill(&mut message, &self.table);
        self.messages.push(message);
    }

    /// Creates the table; an existing one stays.
    pub fn add_table(&mut self) -> &mut Self {
        self.push(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, |m, table| {
            m.str(attr::TABLE_NAME, table);
        });
        self
    }

    /// Deletes the table with all that is in it; that it need not exist is why it is added first.
    pub fn delete_table(&mut self) -> &mut Self {
        self.add_table();
        self.push(libc::NFT_MSG_DELTABLE, 0, |m, table| {
            m.str(attr::TABLE_NAME, table);
        });
        self
    }

    /// Creates a chain that is only jumped to; an existing one stays.
    pub fn add_chain(&mut self, name: &str) -> &mut Self {
        self.push(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, |m, table| {
            m.str(attr::CHAIN_TABLE, table).str(attr::CHAIN_NAME, name);
        });
        self
    }

    /// Creates a base chain that accepts what no rule decides.
    pub fn add_base_chain(&mut self, name: &str, base: BaseChain) -> &mut Self {
        let hook = match base.hook {
            Hook::Prerouting => libc::NF_INET_PRE_ROUTING,
            Hook::Input => libc::NF_INET_LOCAL_IN,
            Hook::Forward => libc::NF_INET_FORWARD,
            Hook::Output => libc::NF_INET_LOCAL_OUT,
            Hook::Postrouting => libc::NF_INET_POST_ROUTING,
        };
        let kind = match base.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        };
        self.push(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, |m, table| {
            m.str(attr::CHAIN_TABLE, table).str(attr::CHAIN_NAME, name);
            m.nest(attr::CHAIN_HOOK, |h| {
                h.be32(attr::HOOK_NUMBER, hook.cast_unsigned());
                h.be32(attr::HOOK_PRIORITY, base.priority.cast_unsigned());
            });
            m.be32(attr::CHAIN_POLICY, libc::NF_ACCEPT.cast_unsigned());
            m.str(attr::CHAIN_TYPE, kind);
        });
        self
    }

    /// Deletes a chain; no rule or map may refer to it any more.
    pub fn delete_chain(&mut self, name: &str) -> &mut Self {
        self.push(libc::NFT_MSG_DELCHAIN, 0, |m, table| {
            m.str(attr::CHAIN_TABLE, table).str(attr::CHAIN_NAME, name);
        });
        self
    }

    /// Deletes the rules of a chain.
    pub fn flush_chain(&mut self, name: &str) -> &mut Self {
        self.push(libc::NFT_MSG_DELRULE, 0, |m, table| {
            m.str(attr::RULE_TABLE, table).str(attr::RULE_CHAIN, name);
        });
        self
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, chain: &str, rule: Rule) -> &mut Self {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        self.push(libc::NFT_MSG_NEWRULE, flags, |m, table| {
            m.str(attr::RULE_TABLE, table).str(attr::RULE_CHAIN, chain);
            m.nest(attr::RULE_EXPRESSIONS, |list| {
                list.raw(rule.expressions());
            });
            if let Some(comment) = &rule.comment {
                m.bytes(attr::RULE_USERDATA, &comment_data(comment));
            }
        });
        self
    }

    /// Creates a set or map; an existing one of the same type stays.
    pub fn add_set(&mut self, set: &Set<'_>) -> &mut Self {
        let id = self.next_set_id;
        self.next_set_id += 1;
        self.push(libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, |m, table| {
            m.str(attr::SET_TABLE, table);
            set.encode(m, id);
        });
        self
    }

    /// Deletes a set or map; no rule may refer to it any more.
    pub fn delete_set(&mut self, set: &str) -> &mut Self {
        self.push(libc::NFT_MSG_DELSET, 0, |m, table| {
            m.str(attr::SET_TABLE, table).str(attr::SET_NAME, set);
        });
        self
    }

    /// Deletes all elements of a set or map.
    pub fn flush_set(&mut self, set: &str) -> &mut Self {
        self.push(libc::NFT_MSG_DELSETELEM, 0, |m, table| {
            m.str(attr::ELEM_LIST_TABLE, table).str(attr::ELEM_LIST_SET, set);
        });
        self
    }

    /// Adds elements. One that is there already with another value fails the batch.
    pub fn add_elements(&mut self, set: &str, elements: impl IntoIterator<Item = Element>) -> &mut Self {
        self.push_elements(libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE, set, elements, false)
    }

    /// Deletes elements. One that is not there fails the batch.
    pub fn delete_elements(&mut self, set: &str, elements: impl IntoIterator<Item = Element>) -> &mut Self {
        self.push_elements(libc::NFT_MSG_DELSETELEM, 0, set, elements, true)
    }

    fn push_elements(
        &mut self,
        kind: i32,
        flags: i32,
        set: &str,
        elements: impl IntoIterator<Item = Element>,
        key_only: bool,
    ) -> &mut Self {
        let mut chunk = Message::fragment();
        let mut send = |chunk: &Message| {
            self.push(kind, flags, |m, table| {
                m.str(attr::ELEM_LIST_TABLE, table).str(attr::ELEM_LIST_SET, set);
                m.nest(attr::ELEM_LIST_ELEMENTS, |list| {
                    list.raw(chunk.as_bytes());
                });
            });
        };
        for element in elements {
            element.encode(&mut chunk, key_only);
            if chunk.len() >= ELEMENTS_PER_MESSAGE {
                send(&chunk);
                chunk = Message::fragment();
            }
        }
        if chunk.len() > 0 {
            send(&chunk);
        }
        self
    }

    /// Applies the batch. On an error nothing of it has taken effect.
    pub fn commit(mut self, socket: &mut Socket) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let header = nfgenmsg(0, u16::try_from(libc::NFNL_SUBSYS_NFTABLES).unwrap_or_default());
        // libc gives begin and end the same number, but the end's is one higher.
        let end = u16::try_from(libc::NFNL_MSG_BATCH_BEGIN + 1).unwrap_or_default();
        self.messages.push(Message::new(end, 0, &header));
        let table = self.table;
        socket.transact(self.messages).map_err(|source: NetlinkError| Error::Netlink {
            action: format!("change the nftables table {table}"),
            source,
        })
    }
}
