//! Reading rules back, for tests, for garbage collection and to explain what packets will hit.

use super::{Element, Family, attr, message_type, nfgenmsg};
use crate::{
    Error, Result,
    netlink::{Attributes, Message, Reply, Socket, text},
};

const NFGENMSG_LEN: usize = 4;

fn dump(socket: &mut Socket, family: Family, kind: i32, fill: impl FnOnce(&mut Message)) -> Result<Vec<Reply>> {
    let mut message = Message::new(message_type(kind), 0, &nfgenmsg(family.number(), 0));
    fill(&mut message);
    match socket.dump(message) {
        Err(error) if error.is(libc::ENOENT) => Ok(Vec::new()),
        result => result.map_err(Error::netlink("list nftables")),
    }
}

/// Names of the tables of a family.
pub fn tables(socket: &mut Socket, family: Family) -> Result<Vec<String>> {
    let replies = dump(socket, family, libc::NFT_MSG_GETTABLE, |_| {})?;
    Ok(replies.iter().filter_map(|reply| reply.attributes(NFGENMSG_LEN).get(attr::TABLE_NAME).map(text)).collect())
}

/// Names of the chains of a table.
pub fn chains(socket: &mut Socket, family: Family, table: &str) -> Result<Vec<String>> {
    let replies = dump(socket, family, libc::NFT_MSG_GETCHAIN, |_| {})?;
    Ok(replies
        .iter()
        .map(|reply| reply.attributes(NFGENMSG_LEN))
        .filter(|chain| chain.get(attr::CHAIN_TABLE).map(text).as_deref() == Some(table))
        .filter_map(|chain| chain.get(attr::CHAIN_NAME).map(text))
        .collect())
}

/// Every rule of a chain as the names of its expressions, which is enough to see what it is.
pub fn rules(socket: &mut Socket, family: Family, table: &str, chain: &str) -> Result<Vec<Vec<String>>> {
    let replies = dump(socket, family, libc::NFT_MSG_GETRULE, |m| {
        m.str(attr::RULE_TABLE, table).str(attr::RULE_CHAIN, chain);
    })?;
    Ok(replies
        .iter()
        .map(|reply| {
            reply
                .attributes(NFGENMSG_LEN)
                .nested(attr::RULE_EXPRESSIONS)
                .filter_map(|(_, expression)| Attributes(expression).get(attr::EXPR_NAME).map(text))
                .collect()
        })
        .collect())
}

/// The elements of a set or map, in no particular order; none if it does not exist.
pub fn elements(socket: &mut Socket, family: Family, table: &str, set: &str) -> Result<Vec<Element>> {
    let replies = dump(socket, family, libc::NFT_MSG_GETSETELEM, |m| {
        m.str(attr::ELEM_LIST_TABLE, table).str(attr::ELEM_LIST_SET, set);
    })?;
    Ok(replies
        .iter()
        .flat_map(|reply| reply.attributes(NFGENMSG_LEN).nested(attr::ELEM_LIST_ELEMENTS))
        .filter_map(|(_, element)| Element::decode(Attributes(element)))
        .collect())
}
