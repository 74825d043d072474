//! Texts that events hold, each kept once with the number of its uses.

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

use super::keys::allocated;

#[derive(Default, Debug)]
pub struct Texts {
    ids: HashTable<u32>,
    texts: Vec<(Box<str>, u32)>,
    free: Vec<u32>,
    /// Unused, but a row of this pass may still show them.
    unused: Vec<u32>,
    bytes: usize,
    /// The bytes of the longest that was ever here.
    longest: usize,
}

impl Texts {
    pub fn get(&self, id: u64) -> &str {
        &self.texts[id as usize].0
    }

    /// The id of a text, used once more.
    pub fn acquire(&mut self, text: &str) -> u64 {
        let hash = xxh3_64(text.as_bytes());
        let id = match self.ids.find(hash, |id| &*self.texts[*id as usize].0 == text) {
            Some(id) => *id,
            None => self.enter(hash, text),
        };
        self.texts[id as usize].1 += 1;
        id as u64
    }

    fn enter(&mut self, hash: u64, text: &str) -> u32 {
        let id = self.free.pop().unwrap_or_else(|| {
            self.texts.push((Box::default(), 0));
            (self.texts.len() - 1) as u32
        });
        self.texts[id as usize] = (text.into(), 0);
        self.bytes += allocated(text.len());
        self.longest = self.longest.max(text.len());
        let texts = &self.texts;
        self.ids.insert_unique(hash, id, |id| xxh3_64(texts[*id as usize].0.as_bytes()));
        id
    }

    /// One more use of a known text.
    pub fn retain(&mut self, id: u64) {
        self.texts[id as usize].1 += 1;
    }

    pub fn release(&mut self, id: u64) {
        let (_, uses) = &mut self.texts[id as usize];
        *uses -= 1;
        if *uses == 0 {
            self.unused.push(id as u32);
        }
    }

    /// Frees the texts that nothing uses any more.
    pub fn sweep(&mut self) {
        for id in std::mem::take(&mut self.unused) {
            let (text, uses) = &mut self.texts[id as usize];
            if *uses > 0 || self.ids.is_empty() {
                continue;
            }
            let hash = xxh3_64(text.as_bytes());
            if let Ok(entry) = self.ids.find_entry(hash, |known| *known == id) {
                entry.remove();
                self.bytes -= allocated(text.len());
                *text = Box::default();
                self.free.push(id);
            }
        }
    }

    /// No text here is longer, in bytes.
    pub fn longest(&self) -> usize {
        self.longest
    }

    pub fn bytes(&self) -> usize {
        self.bytes + self.texts.capacity() * size_of::<(Box<str>, u32)>() + self.ids.allocation_size()
    }
}
