//! Reads one flat JSON object, `{"key": scalar, …}`, out of text that is known to be UTF-8.
//!
//! Events are flat, so there is no nesting to follow: an array or object as a value is named and not entered. Twice as
//! fast as a general parser because the expected key is compared as it stands, quotes included, and because nothing is
//! read twice; see `docs/decisions/0003-json-decoding.md`. Strings with escapes are left to `serde_json`.

use std::borrow::Cow;

/// One value. Numbers keep their text, which decimals need; its syntax is proven.
pub enum Value<'a> {
    Null,
    Bool(bool),
    Number(&'a str),
    Text(Cow<'a, str>),
    Array,
    Object,
}

/// Where the text stops being JSON, and what is wrong there.
pub struct Broken {
    pub at: usize,
    pub what: &'static str,
}

pub struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(text: &'a str) -> Reader<'a> {
        Reader { text, at: 0 }
    }

    pub fn text(&self) -> &'a str {
        self.text
    }

    /// Enter the object; false where it is empty, and then it has been left again.
    pub fn open(&mut self) -> Result<bool, Broken> {
        self.take(b'{', "expected `{`")?;
        if self.peek() != b'}' {
            return Ok(true);
        }
        self.at += 1;
        self.end().map(|()| false)
    }

    /// Go past the next key if it is `quoted`: the name as JSON writes it when nothing needs an escape.
    #[inline]
    pub fn take_key(&mut self, quoted: &str) -> bool {
        self.peek();
        let taken = self.bytes()[self.at..].starts_with(quoted.as_bytes());
        if taken {
            self.at += quoted.len();
        }
        taken
    }

    /// The next key, whatever it is.
    pub fn key(&mut self) -> Result<Cow<'a, str>, Broken> {
        match self.peek() {
            b'"' => self.string(),
            _ => self.broken("expected a key in quotes"),
        }
    }

    #[inline]
    pub fn value(&mut self) -> Result<Value<'a>, Broken> {
        self.take(b':', "expected `:`")?;
        match self.peek() {
            b'"' => Ok(Value::Text(self.string()?)),
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.word("true", Value::Bool(true)),
            b'f' => self.word("false", Value::Bool(false)),
            b'n' => self.word("null", Value::Null),
            b'[' => Ok(Value::Array),
            b'{' => Ok(Value::Object),
            _ => self.broken("expected a value"),
        }
    }

    /// Whether another field follows; if none does, the object and the text have ended.
    #[inline]
    pub fn more(&mut self) -> Result<bool, Broken> {
        let next = self.peek();
        match next {
            b',' | b'}' => self.at += 1,
            _ => return self.broken("expected `,` or `}`"),
        }
        if next == b'}' { self.end().map(|()| false) } else { Ok(true) }
    }

    fn end(&mut self) -> Result<(), Broken> {
        self.peek();
        if self.at == self.text.len() { Ok(()) } else { self.broken("expected nothing more") }
    }

    fn bytes(&self) -> &'a [u8] {
        self.text.as_bytes()
    }

    /// The next byte that is not white space, or 0, which is never valid, at the end.
    #[inline]
    fn peek(&mut self) -> u8 {
        while let Some(byte) = self.bytes().get(self.at) {
            match byte {
                b' ' | b'\n' | b'\r' | b'\t' => self.at += 1,
                _ => return *byte,
            }
        }
        0
    }

    #[inline]
    fn take(&mut self, byte: u8, what: &'static str) -> Result<(), Broken> {
        if self.peek() != byte {
            return self.broken(what);
        }
        self.at += 1;
        Ok(())
    }

    #[cold]
    fn broken<T>(&self, what: &'static str) -> Result<T, Broken> {
        Err(Broken { at: self.at, what })
    }

    fn word(&mut self, word: &str, value: Value<'a>) -> Result<Value<'a>, Broken> {
        if !self.bytes()[self.at..].starts_with(word.as_bytes()) {
            return self.broken("expected a value");
        }
        self.at += word.len();
        Ok(value)
    }

    #[inline]
    fn number(&mut self) -> Result<Value<'a>, Broken> {
        let start = self.at;
        self.skip(b"-");
        let whole = self.at;
        self.digits()?;
        if self.bytes()[whole] == b'0' && self.at > whole + 1 {
            return Err(Broken { at: whole, what: "a number with leading zeros" });
        }
        if self.skip(b".") {
            self.digits()?;
        }
        if self.skip(b"eE") {
            self.skip(b"+-");
            self.digits()?;
        }
        Ok(Value::Number(&self.text[start..self.at]))
    }

    /// Go past the next byte if it is one of `bytes`.
    #[inline]
    fn skip(&mut self, bytes: &[u8]) -> bool {
        let found = self.bytes().get(self.at).is_some_and(|byte| bytes.contains(byte));
        self.at += usize::from(found);
        found
    }

    #[inline]
    fn digits(&mut self) -> Result<(), Broken> {
        let rest = &self.bytes()[self.at..];
        let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += count;
        if count > 0 { Ok(()) } else { self.broken("expected a digit") }
    }

    /// The string whose opening quote is next.
    #[inline]
    fn string(&mut self) -> Result<Cow<'a, str>, Broken> {
        let start = self.at + 1;
        let end = plain_end(self.bytes(), start);
        if self.bytes().get(end) != Some(&b'"') {
            return self.string_with_escapes(end).map(Cow::Owned);
        }
        self.at = end + 1;
        Ok(Cow::Borrowed(&self.text[start..end]))
    }

    #[cold]
    fn string_with_escapes(&mut self, mut end: usize) -> Result<String, Broken> {
        let start = self.at;
        while self.bytes().get(end) == Some(&b'\\') {
            end = plain_end(self.bytes(), end + 2);
        }
        if self.bytes().get(end) != Some(&b'"') {
            self.at = end.min(self.text.len());
            return self.broken("a control character in text");
        }
        self.at = end + 1;
        serde_json::from_str(&self.text[start..self.at])
            .map_err(|_| Broken { at: start, what: "text with an invalid escape" })
    }
}

/// Where, from `at` on, text stops being plain: at a quote, a backslash, a control character or the end.
///
/// Eight bytes at a time: subtracting from each byte of a word sets its top bit where the byte was smaller. A borrow
/// can set the bit of a byte further up by mistake, but never of one before the first that counts.
#[inline]
fn plain_end(bytes: &[u8], mut at: usize) -> usize {
    const EACH: u64 = u64::MAX / 255;
    while let Some(chunk) = bytes.get(at..at + 8) {
        let word = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
        let quote = (word ^ (EACH * b'"' as u64)).wrapping_sub(EACH);
        let backslash = (word ^ (EACH * b'\\' as u64)).wrapping_sub(EACH);
        let control = word.wrapping_sub(EACH * 0x20);
        let found = (quote | backslash | control) & !word & (EACH << 7);
        if found != 0 {
            return at + (found.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while bytes.get(at).is_some_and(|byte| !matches!(byte, b'"' | b'\\' | 0..=0x1f)) {
        at += 1;
    }
    at
}
