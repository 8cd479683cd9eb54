use sha2::{Digest as _, Sha256};

use super::fault::Halt;
use super::json::{Mode, Renderer, unquoted_or_iso};
use super::node::{Budget, Node, NodeId, Nodes, Scalar};
use super::table::Mask;
use super::text;
use super::wire::Cursor;

/// Appends the masked form of the value at the cursor: always text.
pub(crate) fn write(
    nodes: &Nodes,
    node: NodeId,
    mask: &Mask,
    cursor: &mut Cursor<'_>,
    budget: &mut Budget,
    out: &mut Vec<u8>,
) -> Result<(), Halt> {
    let start = out.len();
    plain_text(nodes, node, cursor, budget, out)?;
    match mask {
        Mask::Sha256 { salt } => {
            let digest = Sha256::new().chain_update(salt).chain_update(&out[start..]).finalize();
            out.truncate(start);
            digest.iter().for_each(|byte| text::write_hex(*byte, out));
        }
        Mask::Last4 => {
            let clear = text::checked(&out[start..])?;
            let chars = clear.chars().count();
            let hidden = if chars > 4 { chars - 4 } else { chars };
            let masked: String =
                "*".repeat(hidden) + &clear.chars().skip(hidden).collect::<String>();
            out.truncate(start);
            out.extend_from_slice(masked.as_bytes());
        }
        Mask::Null => out.truncate(start),
    }
    Ok(())
}

/// The value as text: strings as they are, other scalars as in JSON without its quotes, values
/// with parts as JSON.
fn plain_text(
    nodes: &Nodes,
    node: NodeId,
    cursor: &mut Cursor<'_>,
    budget: &mut Budget,
    out: &mut Vec<u8>,
) -> Result<(), Halt> {
    let Node::Leaf(leaf) = nodes.get(node) else {
        return Renderer { nodes, mode: Mode::Strict }.value(node, cursor, budget, out);
    };
    match leaf.read(cursor)? {
        Scalar::Text(bytes) => {
            text::check(bytes)?;
            out.extend_from_slice(bytes);
        }
        Scalar::Symbol(symbol) => out.extend_from_slice(symbol.as_bytes()),
        scalar => {
            let start = out.len();
            unquoted_or_iso(scalar, budget, out)?;
            if out.get(start) == Some(&b'"') {
                out.pop();
                out.remove(start);
            }
        }
    }
    Ok(())
}
