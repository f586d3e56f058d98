//! Reading what strace wrote: `PID call(args) = result`, strings and paths in hexadecimal, calls of
//! other threads in between as `<unfinished ...>` and `<... call resumed>`.

use std::collections::HashMap;

/// One system call. Its effect lies somewhere between the two lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What was done.
    pub what: What,
    /// The line at which it began.
    pub began: usize,
    /// The line at which it had ended.
    pub ended: usize,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Bytes into a file at an offset.
    Write { path: String, offset: u64, bytes: Vec<u8> },
    /// A file made shorter or longer.
    Truncate { path: String, length: u64 },
    /// A name that came into being.
    Create { path: String },
    /// A folder that came into being.
    MakeFolder { path: String },
    /// A name that went.
    Unlink { path: String },
    /// A file or a folder brought to the disk.
    Sync { path: String },
    /// Bytes to a client or a worker.
    Send { socket: String, bytes: Vec<u8> },
}

/// Reads a whole trace.
pub fn read(text: &str) -> Vec<Call> {
    let mut reader = Reader::default();
    for (at, line) in text.lines().enumerate() {
        reader.line(at, line);
    }
    reader.calls.sort_by_key(|call| call.began);
    reader.calls
}

#[derive(Default)]
struct Reader {
    /// Calls that have begun, by thread: where, and their text so far.
    open: HashMap<String, (usize, String)>,
    /// Where the next plain `write` goes, by file descriptor.
    offsets: HashMap<String, u64>,
    calls: Vec<Call>,
}

impl Reader {
    fn line(&mut self, at: usize, line: &str) {
        let Some((pid, rest)) = line.split_once(' ') else { return };
        let rest = rest.trim_start();
        if let Some(begun) = rest.strip_suffix(" <unfinished ...>") {
            self.open.insert(pid.to_owned(), (at, begun.to_owned()));
        } else if let Some(resumed) = rest.strip_prefix("<... ") {
            let Some((began, head)) = self.open.remove(pid) else { return };
            let Some((_, tail)) = resumed.split_once(" resumed>") else { return };
            self.whole(began, at, &(head + tail));
        } else {
            self.whole(at, at, rest);
        }
    }

    fn whole(&mut self, began: usize, ended: usize, text: &str) {
        let Some((name, rest)) = text.split_once('(') else { return };
        let Some((arguments, result)) = rest.rsplit_once(") = ") else { return };
        if result.starts_with('-') {
            return;
        }
        if let Some(what) = self.what(name, arguments, result) {
            self.calls.push(Call { what, began, ended });
        }
    }

    fn what(&mut self, name: &str, arguments: &str, result: &str) -> Option<What> {
        match name {
            "openat" => self.opened(arguments, result),
            "pwrite64" => {
                let (_, path) = descriptor(arguments)?;
                let bytes = quoted(arguments)?;
                let offset = arguments.rsplit(", ").next()?.parse().ok()?;
                Some(What::Write { path, offset, bytes: cut(bytes, result) })
            }
            "write" | "writev" | "sendto" | "sendmsg" => {
                let (number, path) = descriptor(arguments)?;
                let bytes = cut(all_quoted(arguments), result);
                if !path.starts_with('/') {
                    return Some(What::Send { socket: path, bytes });
                }
                let next = self.offsets.entry(number).or_default();
                let offset = *next;
                *next += bytes.len() as u64;
                Some(What::Write { path, offset, bytes })
            }
            "ftruncate" => {
                let (_, path) = descriptor(arguments)?;
                Some(What::Truncate { path, length: arguments.rsplit(", ").next()?.parse().ok()? })
            }
            "fsync" | "fdatasync" => Some(What::Sync { path: descriptor(arguments)?.1 }),
            "unlink" | "unlinkat" => Some(What::Unlink { path: text(quoted(arguments)?) }),
            "mkdir" | "mkdirat" => Some(What::MakeFolder { path: text(quoted(arguments)?) }),
            _ => None,
        }
    }

    fn opened(&mut self, arguments: &str, result: &str) -> Option<What> {
        let (number, path) = descriptor(result)?;
        self.offsets.insert(number, 0);
        arguments.contains("O_CREAT").then_some(What::Create { path })
    }
}

/// `5<\x2f\x74>` at the start of a text: the number and the decoded name behind it.
fn descriptor(text_: &str) -> Option<(String, String)> {
    let (number, rest) = text_.split_once('<')?;
    let (name, _) = rest.split_once('>')?;
    Some((number.to_owned(), text(decode(name))))
}

/// The first string among the arguments.
fn quoted(arguments: &str) -> Option<Vec<u8>> {
    let (_, rest) = arguments.split_once('"')?;
    Some(decode(rest.split_once('"')?.0))
}

/// All strings among the arguments, joined: the pieces of a vector.
fn all_quoted(arguments: &str) -> Vec<u8> {
    arguments.split('"').skip(1).step_by(2).flat_map(decode).collect()
}

/// What a call that took less than it was given has written.
fn cut(mut bytes: Vec<u8>, result: &str) -> Vec<u8> {
    bytes.truncate(result.trim().parse().unwrap_or(bytes.len()));
    bytes
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `\x2f` by `\x2f`; what is not in that form (a socket's number) stays as it is.
fn decode(hex: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(hex.len() / 4);
    let mut rest = hex.as_bytes();
    while let [first, tail @ ..] = rest {
        if let [b'\\', b'x', high, low, after @ ..] = rest
            && let (Some(high), Some(low)) = (digit(*high), digit(*low))
        {
            bytes.push(high << 4 | low);
            rest = after;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    bytes
}

const fn digit(letter: u8) -> Option<u8> {
    match letter {
        b'0'..=b'9' => Some(letter - b'0'),
        b'a'..=b'f' => Some(letter - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_two_threads_are_told_apart() {
        let text = concat!(
            "7 openat(AT_FDCWD</x>, \"\\x2f\\x61\", O_RDWR|O_CREAT, 0644) = 5<\\x2f\\x61>\n",
            "7 pwrite64(5<\\x2f\\x61>, \"\\x41\\x42\", 2, 512 <unfinished ...>\n",
            "8 sendto(9<\\x73\\x6f\\x63\\x6b\\x65\\x74:[1]>, \"\\x4f\\x4b\", 2, 0, NULL, 0) = 2\n",
            "7 <... pwrite64 resumed>) = 2\n",
            "7 fdatasync(5<\\x2f\\x61>) = 0\n",
            "7 write(5<\\x2f\\x61>, \"\\x43\\x44\", 2) = 1\n",
            "7 fdatasync(5<\\x2f\\x61>) = -1 EIO (Input/output error)\n",
        );
        let path = || "/a".to_owned();
        let expected = [
            (What::Create { path: path() }, 0, 0),
            (What::Write { path: path(), offset: 512, bytes: b"AB".to_vec() }, 1, 3),
            (What::Send { socket: "socket:[1]".to_owned(), bytes: b"OK".to_vec() }, 2, 2),
            (What::Sync { path: path() }, 4, 4),
            (What::Write { path: path(), offset: 0, bytes: b"C".to_vec() }, 5, 5),
        ];
        let found: Vec<_> = read(text).into_iter().map(|call| (call.what, call.began, call.ended)).collect();
        assert_eq!(found, expected);
    }
}
