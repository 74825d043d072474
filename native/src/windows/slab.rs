//! Where the keys of a shard live: chunks of equal blocks, so that growing moves nothing and wastes little.

use super::keys::{Key, KeyRef};
use super::layout::{Layout, TIME};
use super::objects::Object;
use super::prefetch::prefetch;
use super::ring::Ring;

const CHUNK: usize = 256;
/// Words of a cache line.
const LINE_WORDS: usize = 8;

#[derive(Default, Debug)]
pub struct Slab {
    chunks: Vec<Chunk>,
    free: Vec<u32>,
    /// Slots that were ever used.
    len: usize,
    stride: usize,
}

#[derive(Debug)]
struct Chunk {
    words: Box<[u64]>,
    rings: Box<[Ring]>,
    keys: KeyColumn,
    /// Empty where a layout has none.
    objects: Vec<Box<[Object]>>,
    used: [u64; CHUNK / 64],
}

#[derive(Debug)]
enum KeyColumn {
    Ints(Box<[i64]>),
    Bytes(Vec<Box<[u8]>>),
}

impl Slab {
    pub fn len(&self) -> usize {
        self.len
    }

    /// The memory of the blocks in use, without what they point to. A block that was left is used again before memory
    /// is taken: at its limit, the state has room for as many keys as have gone.
    pub fn bytes(&self) -> usize {
        let used = self.len - self.free.len();
        self.chunks.first().map_or(0, |chunk| chunk.bytes().div_ceil(CHUNK) * used)
    }

    pub fn enter(&mut self, layout: &Layout, key: Key) -> usize {
        let slot = self.free.pop().map_or(self.len, |slot| slot as usize);
        if slot == self.len {
            self.len += 1;
        }
        if slot / CHUNK == self.chunks.len() {
            self.stride = layout.words;
            self.chunks.push(Chunk::new(layout, &key));
        }
        let (chunk, at) = (&mut self.chunks[slot / CHUNK], slot % CHUNK);
        chunk.used[at / 64] |= 1 << (at % 64);
        let words = &mut chunk.words[at * layout.words..][..layout.words];
        words.fill(0);
        words[TIME] = i64::MIN as u64;
        if !layout.objects.is_empty() {
            chunk.objects[at] = layout.objects.iter().map(Object::new).collect();
        }
        match (&mut chunk.keys, key) {
            (KeyColumn::Ints(ints), Key::Int(int)) => ints[at] = int,
            (KeyColumn::Bytes(all), Key::Bytes(bytes)) => all[at] = bytes,
            _ => unreachable!("a store's keys are all of one kind"),
        }
        slot
    }

    pub fn leave(&mut self, slot: usize) {
        let (chunk, at) = (&mut self.chunks[slot / CHUNK], slot % CHUNK);
        chunk.used[at / 64] &= !(1 << (at % 64));
        chunk.rings[at] = Ring::default();
        if let Some(objects) = chunk.objects.get_mut(at) {
            *objects = Box::default();
        }
        if let KeyColumn::Bytes(all) = &mut chunk.keys {
            all[at] = Box::default();
        }
        self.free.push(slot as u32);
    }

    pub fn used(&self, slot: usize) -> bool {
        self.chunks[slot / CHUNK].used[slot % CHUNK / 64] >> (slot % 64) & 1 == 1
    }

    pub fn key(&self, slot: usize) -> KeyRef<'_> {
        match &self.chunks[slot / CHUNK].keys {
            KeyColumn::Ints(ints) => KeyRef::Int(ints[slot % CHUNK]),
            KeyColumn::Bytes(all) => KeyRef::Bytes(&all[slot % CHUNK]),
        }
    }

    pub fn ring(&self, slot: usize) -> &Ring {
        &self.chunks[slot / CHUNK].rings[slot % CHUNK]
    }

    pub fn words(&self, slot: usize) -> &[u64] {
        &self.chunks[slot / CHUNK].words[slot % CHUNK * self.stride..][..self.stride]
    }

    /// Asks for a key's words and its ring.
    #[inline]
    pub fn prefetch(&self, slot: usize) {
        self.words(slot).iter().step_by(LINE_WORDS).for_each(prefetch);
        self.words(slot).last().into_iter().for_each(prefetch);
        prefetch(self.ring(slot));
    }

    pub fn objects(&self, slot: usize) -> &[Object] {
        self.chunks[slot / CHUNK].objects.get(slot % CHUNK).map_or(&[], |objects| objects)
    }

    /// A key's words, ring and objects.
    pub fn block(&mut self, slot: usize) -> (&mut [u64], &mut Ring, &mut [Object]) {
        let (chunk, at) = (&mut self.chunks[slot / CHUNK], slot % CHUNK);
        let objects = chunk.objects.get_mut(at).map_or(&mut [][..], |objects| objects);
        (&mut chunk.words[at * self.stride..][..self.stride], &mut chunk.rings[at], objects)
    }
}

impl Chunk {
    fn new(layout: &Layout, key: &Key) -> Chunk {
        Chunk {
            words: vec![0; CHUNK * layout.words].into(),
            rings: (0..CHUNK).map(|_| Ring::default()).collect(),
            keys: match key {
                Key::Int(_) => KeyColumn::Ints(vec![0; CHUNK].into()),
                Key::Bytes(_) => KeyColumn::Bytes((0..CHUNK).map(|_| Box::default()).collect()),
            },
            objects: if layout.objects.is_empty() {
                Vec::new()
            } else {
                (0..CHUNK).map(|_| Box::default()).collect()
            },
            used: [0; CHUNK / 64],
        }
    }

    fn bytes(&self) -> usize {
        let keys = match &self.keys {
            KeyColumn::Ints(_) => CHUNK * 8,
            KeyColumn::Bytes(_) => CHUNK * size_of::<Box<[u8]>>(),
        };
        self.words.len() * 8
            + CHUNK * size_of::<Ring>()
            + keys
            + self.objects.len() * size_of::<Box<[Object]>>()
    }
}
