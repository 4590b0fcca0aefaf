//! How a stream of bytes is cut into messages, and put together again.

use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::str::FromStr;

/// The tag of a piece of a line that does not end there: the line is longer than a message, or the input ends without a newline.
const UNENDED: u16 = 1;

/// A form of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A message a line, without its newline. Any bytes will do.
    Lines,
    /// Each message follows its length, 4 bytes, little-endian.
    Frames,
    /// A message each so many bytes; the last may be shorter.
    Raw(usize),
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "lines" => Ok(Self::Lines),
            None if text == "frames" => Ok(Self::Frames),
            Some(("raw", size)) => match crate::daemon::parse_bytes(size)? {
                0 => Err("a record has at least one byte".to_owned()),
                size => usize::try_from(size).map(Self::Raw).map_err(|error| error.to_string()),
            },
            _ => Err("it is one of lines, frames, raw=SIZE".to_owned()),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lines => f.write_str("lines"),
            Self::Frames => f.write_str("frames"),
            Self::Raw(size) => write!(f, "raw={size}"),
        }
    }
}

/// Cuts its input into messages of at most `longest` bytes.
pub struct Reader<R> {
    input: R,
    format: Format,
    longest: usize,
    message: Vec<u8>,
}

impl<R: BufRead> Reader<R> {
    /// Reads that input; `longest` is the most bytes that a message may have.
    pub fn new(input: R, format: Format, longest: usize) -> Self {
        Self { input, format, longest, message: Vec::new() }
    }

    /// The next message and its tag; `None` at the end.
    pub fn read_message(&mut self) -> io::Result<Option<(u16, &[u8])>> {
        self.message.clear();
        let tag = match self.format {
            Format::Lines => self.read_line()?,
            Format::Frames => self.read_frame()?,
            Format::Raw(size) => self.read_record(size)?,
        };
        Ok(tag.map(|tag| (tag, self.message.as_slice())))
    }

    fn read_line(&mut self) -> io::Result<Option<u16>> {
        let limit = self.longest as u64;
        let length = self.input.by_ref().take(limit).read_until(b'\n', &mut self.message)?;
        if length == 0 {
            return Ok(None);
        }
        if self.message.last() == Some(&b'\n') {
            self.message.pop();
            return Ok(Some(0));
        }
        Ok(Some(UNENDED))
    }

    fn read_frame(&mut self) -> io::Result<Option<u16>> {
        if self.input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut length = [0; 4];
        self.input.read_exact(&mut length).map_err(|error| truncated(error, "length"))?;
        let length = u32::from_le_bytes(length) as usize;
        if length > self.longest {
            let text = format!(
                "a frame of {length} bytes is too long, this channel takes at most {}; a larger --capacity takes more",
                self.longest
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        self.message.resize(length, 0);
        self.input.read_exact(&mut self.message).map_err(|error| truncated(error, "payload"))?;
        Ok(Some(0))
    }

    fn read_record(&mut self, size: usize) -> io::Result<Option<u16>> {
        if size > self.longest {
            let text = format!(
                "records of {size} bytes are too long, this channel takes at most {}; a larger --capacity takes more",
                self.longest
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let length = self.input.by_ref().take(size as u64).read_to_end(&mut self.message)?;
        Ok((length > 0).then_some(0))
    }
}

fn truncated(error: io::Error, what: &str) -> io::Error {
    if error.kind() != io::ErrorKind::UnexpectedEof {
        return error;
    }
    io::Error::new(error.kind(), format!("the input ends in the middle of a frame's {what}"))
}

/// Writes a message as [`Reader`] found it.
pub fn write(output: &mut impl Write, format: Format, tag: u16, payload: &[u8]) -> io::Result<()> {
    match format {
        Format::Lines => {
            output.write_all(payload)?;
            if tag == UNENDED { Ok(()) } else { output.write_all(b"\n") }
        }
        Format::Frames => {
            // A message is at most 4 GiB - 16 long.
            output.write_all(&(payload.len() as u32).to_le_bytes())?;
            output.write_all(payload)
        }
        Format::Raw(_) => output.write_all(payload),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(format: Format, longest: usize, input: &[u8]) -> (usize, Vec<u8>) {
        let mut reader = Reader::new(input, format, longest);
        let mut output = Vec::new();
        let mut messages = 0;
        while let Some((tag, payload)) = reader.read_message().unwrap() {
            assert!(payload.len() <= longest);
            write(&mut output, format, tag, payload).unwrap();
            messages += 1;
        }
        (messages, output)
    }

    #[test]
    fn any_bytes_survive_as_lines_and_as_records() {
        for input in [&b""[..], b"\n", b"\n\n", b"a", b"a\n", b"a\nb", b"a\n\nb\n", b"\0\xff\n\r\n", b"0123456789\n0123456789"] {
            for longest in [1, 2, 3, 10, 11, 100] {
                assert_eq!(round_trip(Format::Lines, longest, input).1, input, "{longest}");
                assert_eq!(round_trip(Format::Raw(longest), longest, input).1, input);
            }
        }
        assert_eq!(round_trip(Format::Lines, 100, b"a\nb\nc").0, 3);
        assert_eq!(round_trip(Format::Raw(2), 100, b"abcde").0, 3);
    }

    #[test]
    fn frames_survive_and_broken_ones_are_told() {
        let frames = b"\x01\0\0\0a\0\0\0\0\x02\0\0\0bc";
        assert_eq!(round_trip(Format::Frames, 2, frames), (3, frames.to_vec()));
        for (broken, what) in [(&frames[..3], "length"), (&frames[..4], "payload")] {
            let error = Reader::new(broken, Format::Frames, 2).read_message().unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
        let error = Reader::new(&frames[..], Format::Frames, 0).read_message().unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
    }

    #[test]
    fn formats_are_parsed() {
        assert_eq!(
            ["lines", "frames", "raw=4K"].map(|text| text.parse::<Format>().unwrap()),
            [Format::Lines, Format::Frames, Format::Raw(4096)]
        );
        for bad in ["", "raw", "raw=0", "raw=x", "words"] {
            assert!(bad.parse::<Format>().is_err());
        }
    }
}
