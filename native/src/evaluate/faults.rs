//! Which faults count: those whose value somebody asked for.
//!
//! Every operation runs over every row, also where a case takes another branch, because that is
//! faster than choosing rows. So after the pass, and only if something faulted, the rows in which
//! each value was asked for are worked out from the results back to the columns. A shared operation
//! counts once.

use arrow_buffer::BooleanBuffer;

use super::column::Column;
use super::plan::{Node, Operation};

pub(super) fn count(
    nodes: &[Node],
    slots: &[Column],
    outputs: &[usize],
    faulted: Vec<(usize, BooleanBuffer)>,
    rows: usize,
) -> u64 {
    if faulted.is_empty() {
        return 0;
    }
    let mut demand = Demand { rows, slots, asked: vec![None; nodes.len()] };
    for &place in outputs {
        demand.add(place, &BooleanBuffer::new_set(rows));
    }
    for (place, node) in nodes.iter().enumerate().rev() {
        if let Some(asked) = demand.asked[place].clone() {
            demand.pass_on(node, asked);
        }
    }
    let counted = |(place, faults): (usize, BooleanBuffer)| {
        demand.asked[place].as_ref().map_or(0, |asked| (&faults & asked).count_set_bits() as u64)
    };
    faulted.into_iter().map(counted).sum()
}

struct Demand<'a> {
    rows: usize,
    slots: &'a [Column],
    /// For each node, the rows in which its value was asked for.
    asked: Vec<Option<BooleanBuffer>>,
}

impl Demand<'_> {
    fn add(&mut self, place: usize, rows: &BooleanBuffer) {
        let before = self.asked[place].take();
        self.asked[place] = Some(before.map_or_else(|| rows.clone(), |before| &before | rows));
    }

    /// A node that was asked for in these rows asks its arguments.
    fn pass_on(&mut self, node: &Node, asked: BooleanBuffer) {
        match node.operation {
            Operation::Case => self.pass_on_case(node, asked),
            Operation::Coalesce => self.pass_on_while(node, asked, |column, rows| !&column.valid_bits(rows)),
            Operation::And => self.pass_on_while(node, asked, |column, rows| !&column.false_bits(rows)),
            Operation::Or => self.pass_on_while(node, asked, |column, rows| !&column.true_bits(rows)),
            _ => node.args.iter().for_each(|&place| self.add(place, &asked)),
        }
    }

    /// From left to right, as long as what was found leaves the next argument a say.
    fn pass_on_while(
        &mut self,
        node: &Node,
        mut asked: BooleanBuffer,
        goes_on: impl Fn(&Column, usize) -> BooleanBuffer,
    ) {
        for &place in &node.args {
            self.add(place, &asked);
            asked = &asked & &goes_on(&self.slots[place], self.rows);
        }
    }

    fn pass_on_case(&mut self, node: &Node, mut asked: BooleanBuffer) {
        for branch in node.args.chunks(2) {
            self.add(branch[0], &asked);
            if let &[condition, value] = branch {
                let holds = self.slots[condition].true_bits(self.rows);
                self.add(value, &(&asked & &holds));
                asked = &asked & &!&holds;
            }
        }
    }
}
