//! Makes random messages byte by byte from the schema table, and remembers where their lengths are.

use crate::schema::{Field, Kind, Message};

/// A small generator of numbers (SplitMix64); the seed is in the message of every assertion.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `end`.
    pub(super) fn below(&mut self, end: u64) -> usize {
        (self.next() % end) as usize
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    pub(super) fn text(&mut self) -> String {
        (0..self.below(6)).map(|_| ['a', 'B', '-', '7', 'é', '猫'][self.below(6)]).collect()
    }
}

/// How a length or count is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LengthForm {
    Int16,
    Int32,
    Varint,
}

/// A message being made.
pub(super) struct Maker {
    pub(super) bytes: Vec<u8>,
    /// Where every length, count, tag count and tag size stands: (offset, bytes it takes, form).
    pub(super) lengths: Vec<(usize, usize, LengthForm)>,
    pub(super) rng: Rng,
    version: i16,
    flexible: bool,
    /// Whether to add tagged fields that no schema knows.
    strange_tags: bool,
}

impl Maker {
    pub(super) fn new(seed: u64, strange_tags: bool) -> Maker {
        Maker {
            bytes: Vec::new(),
            lengths: Vec::new(),
            rng: Rng(seed),
            version: 0,
            flexible: false,
            strange_tags,
        }
    }

    /// The header of a request: 1, or 2 when `flexible`.
    pub(super) fn request_header(&mut self, key: i16, version: i16, flexible: bool) {
        self.bytes.extend(key.to_be_bytes());
        self.bytes.extend(version.to_be_bytes());
        self.bytes.extend(77i32.to_be_bytes());
        let client_id = self.rng.chance(80).then(|| self.rng.text());
        self.flexible = false;
        self.prefixed(LengthForm::Int16, client_id.as_deref().map(str::as_bytes));
        if flexible {
            self.tags(&[]);
        }
    }

    pub(super) fn body(&mut self, message: &'static Message, version: i16) {
        self.version = version;
        self.flexible = message.flexible.contains(version);
        self.structure(message.fields);
    }

    fn structure(&mut self, fields: &'static [Field]) {
        let version = self.version;
        for field in fields.iter().filter(|f| f.tag.is_none() && f.versions.contains(version)) {
            self.value(&field.kind, field.nullable.contains(version));
        }
        if self.flexible {
            self.tags(fields);
        }
    }

    fn tags(&mut self, fields: &'static [Field]) {
        let version = self.version;
        let mut chosen: Vec<&Field> =
            fields.iter().filter(|f| f.tag.is_some() && f.versions.contains(version)).collect();
        chosen.retain(|_| self.rng.chance(60));
        chosen.sort_by_key(|f| f.tag);
        let strange =
            if self.strange_tags && self.rng.chance(20) { 1 + self.rng.below(2) } else { 0 };
        self.length(LengthForm::Varint, (chosen.len() + strange) as u32);
        for field in chosen {
            self.varint(field.tag.unwrap());
            self.sized(|maker| maker.value(&field.kind, field.nullable.contains(version)));
        }
        for at in 0..strange {
            self.varint(1000 + at as u32);
            self.sized(|maker| maker.bytes.extend([1, 2, 3]));
        }
    }

    /// Writes a value behind its size.
    fn sized(&mut self, write: impl FnOnce(&mut Maker)) {
        let (bytes, lengths) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.lengths));
        write(self);
        let (value, inner) = (
            std::mem::replace(&mut self.bytes, bytes),
            std::mem::replace(&mut self.lengths, lengths),
        );
        self.length(LengthForm::Varint, value.len() as u32);
        let shift = self.bytes.len();
        self.lengths.extend(inner.into_iter().map(|(at, size, form)| (at + shift, size, form)));
        self.bytes.extend(value);
    }

    fn value(&mut self, kind: &'static Kind, nullable: bool) {
        let null = nullable && self.rng.chance(25);
        match kind {
            Kind::Fixed(size) => {
                // The kinds of one byte include bool, of which 0 and 1 are the only forms that come
                // back as they were.
                let byte = if *size == 1 { self.rng.below(2) as u8 } else { 0 };
                let random = self.rng.next();
                self.bytes
                    .extend((0..*size).map(|at| {
                        if *size == 1 { byte } else { (random >> (8 * (at % 8))) as u8 }
                    }));
            }
            Kind::Str => {
                let text = self.rng.text();
                self.prefixed(LengthForm::Int16, (!null).then_some(text.as_bytes()));
            }
            Kind::Blob | Kind::Records => {
                let blob: Vec<u8> = (0..self.rng.below(20)).map(|at| at as u8).collect();
                self.prefixed(LengthForm::Int32, (!null).then_some(&blob[..]));
            }
            Kind::Array(element) => {
                let count = if null { None } else { Some(self.rng.below(3)) };
                self.optional_length(LengthForm::Int32, count);
                (0..count.unwrap_or(0)).for_each(|_| self.value(element, false));
            }
            Kind::Struct(_) if null => self.bytes.push(0xff),
            Kind::Struct(fields) => {
                if nullable {
                    self.bytes.push(1);
                }
                self.structure(fields);
            }
        }
    }

    fn prefixed(&mut self, form: LengthForm, value: Option<&[u8]>) {
        self.optional_length(form, value.map(<[u8]>::len));
        self.bytes.extend(value.unwrap_or_default());
    }

    fn optional_length(&mut self, form: LengthForm, length: Option<usize>) {
        if self.flexible {
            self.length(LengthForm::Varint, length.map_or(0, |length| length as u32 + 1));
        } else {
            self.length(form, length.map_or(u32::MAX, |length| length as u32));
        }
    }

    fn length(&mut self, form: LengthForm, value: u32) {
        let at = self.bytes.len();
        match form {
            LengthForm::Int16 => self.bytes.extend((value as i16).to_be_bytes()),
            LengthForm::Int32 => self.bytes.extend((value as i32).to_be_bytes()),
            LengthForm::Varint => self.varint(value),
        }
        self.lengths.push((at, self.bytes.len() - at, form));
    }

    fn varint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }
}
