//! A disk that keeps what was synced and is free to keep, drop, tear or reorder the rest.
//!
//! The promise of POSIX and no more: the bytes of a file are safe after a sync of the file, its name
//! after a sync of its folder. A disk's sector of 512 bytes is written whole or not at all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use super::trace::{Call, What};
use crate::rng::Rng;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// The files of an image, by their path under the home.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What becomes of writes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// None reached the disk.
    Dropped,
    /// All did: the process was killed, the power stayed.
    Kept,
    /// Each did or did not, whatever their order.
    Reordered,
    /// As before, and of those that did only some sectors.
    Torn,
}

impl Fate {
    /// One of them.
    pub const fn draw(rng: &mut Rng) -> Self {
        match rng.below(4) {
            0 => Self::Dropped,
            1 => Self::Kept,
            2 => Self::Reordered,
            _ => Self::Torn,
        }
    }
}

/// One change of the disk.
struct Change {
    began: usize,
    /// From this line on it is on the disk whatever happens.
    safe: usize,
    what: What,
}

/// Jobs that something was said about, with the line at which it began to be said.
type Promises = Vec<(usize, String)>;

/// The changes of a recording, in order, and what was promised meanwhile.
pub struct Disk {
    changes: Vec<Change>,
    /// Lines of the recording.
    lines: usize,
    acknowledged: Promises,
    ended: Promises,
}

impl Disk {
    /// What was done to the folder `home`.
    pub fn of(calls: &[Call], home: &Path) -> Self {
        let syncs = syncs(calls);
        let home = format!("{}/", home.display());
        let changes = calls.iter().filter_map(|call| change(call, &home, &syncs)).collect();
        let (acknowledged, ended) = promises(calls);
        let lines = calls.iter().map(|call| call.ended + 1).max().unwrap_or(0);
        Self { changes, lines, acknowledged, ended }
    }

    /// Points at which the power can go: before each line, and after the last.
    pub const fn len(&self) -> usize {
        self.lines
    }

    /// Jobs that a client may have been told of when the power goes before line `cut`.
    pub fn acknowledged_before(&self, cut: usize) -> BTreeSet<&str> {
        before(&self.acknowledged, cut)
    }

    /// Jobs whose end a client may have seen by then.
    pub fn ended_before(&self, cut: usize) -> BTreeSet<&str> {
        before(&self.ended, cut)
    }

    /// A disk as it can be found when the power goes before line `cut`.
    pub fn after(&self, cut: usize, fate: Fate, rng: &mut Rng) -> Files {
        let mut files = Files::new();
        // Bytes whose file has no name on this disk are gone with it.
        for change in self.changes.iter().take_while(|change| change.began < cut) {
            let torn = match fate {
                _ if change.safe <= cut => false,
                Fate::Dropped => continue,
                Fate::Kept => false,
                Fate::Reordered | Fate::Torn if rng.percent(50) => continue,
                Fate::Reordered => false,
                Fate::Torn => true,
            };
            apply(&mut files, &change.what, torn.then_some(&mut *rng));
        }
        files
    }
}

fn before(promised: &[(usize, String)], cut: usize) -> BTreeSet<&str> {
    promised.iter().take_while(|(at, _)| *at < cut).map(|(_, job)| job.as_str()).collect()
}

/// When each path was synced: where the call began and where it had ended, in order.
fn syncs(calls: &[Call]) -> HashMap<&str, Vec<(usize, usize)>> {
    let mut syncs: HashMap<&str, Vec<(usize, usize)>> = HashMap::new();
    for call in calls {
        if let What::Sync { path } = &call.what {
            syncs.entry(path).or_default().push((call.began, call.ended));
        }
    }
    syncs
}

/// A call as a change below `home`. Only a sync that began after it had ended makes it safe.
fn change(call: &Call, home: &str, syncs: &HashMap<&str, Vec<(usize, usize)>>) -> Option<Change> {
    let (path, synced_by) = match &call.what {
        What::Write { path, .. } | What::Truncate { path, .. } => (path, path.as_str()),
        What::Create { path } | What::Unlink { path } => (path, path.rsplit_once('/')?.0),
        What::MakeFolder { .. } | What::Sync { .. } | What::Send { .. } => return None,
    };
    let name = path.strip_prefix(home)?;
    if !matters(name) {
        return None;
    }
    let later = syncs.get(synced_by).into_iter().flatten().find(|(began, _)| *began > call.ended);
    let safe = later.map_or(usize::MAX, |(_, ended)| ended + 1);
    Some(Change { began: call.began, safe, what: below(&call.what, name) })
}

/// The index of the log is made anew at each start, and the lock file says nothing.
fn matters(name: &str) -> bool {
    name.starts_with("prompts/") || name == "orchestrator.db" || name == "orchestrator.db-wal"
}

fn below(what: &What, name: &str) -> What {
    let mut what = what.clone();
    if let What::Write { path, .. }
    | What::Truncate { path, .. }
    | What::Create { path }
    | What::Unlink { path } = &mut what
    {
        name.clone_into(path);
    }
    what
}

/// Makes a change, or with `tear` only some sectors of it. What is not there is not made.
fn apply(files: &mut Files, what: &What, tear: Option<&mut Rng>) {
    match what {
        What::Create { path } => {
            files.entry(path.clone()).or_default();
        }
        What::Unlink { path } => {
            files.remove(path);
        }
        What::Truncate { path, length } => {
            if let (Some(file), Ok(length)) = (files.get_mut(path), usize::try_from(*length)) {
                file.resize(length, 0);
            }
        }
        What::Write { path, offset, bytes } => {
            if let (Some(file), Ok(offset)) = (files.get_mut(path), usize::try_from(*offset)) {
                write(file, offset, bytes, tear);
            }
        }
        What::MakeFolder { .. } | What::Sync { .. } | What::Send { .. } => {}
    }
}

fn write(file: &mut Vec<u8>, offset: usize, bytes: &[u8], mut tear: Option<&mut Rng>) {
    let mut at = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        let (sector, after) = rest.split_at(rest.len().min(SECTOR - at % SECTOR));
        if tear.as_mut().is_none_or(|rng| rng.percent(50)) {
            let end = at + sector.len();
            if file.len() < end {
                file.resize(end, 0);
            }
            if let Some(place) = file.get_mut(at..end) {
                place.copy_from_slice(sector);
            }
        }
        at += sector.len();
        rest = after;
    }
}

/// Jobs that were acknowledged, and jobs whose end was shown, with the line at which the words began
/// to leave.
fn promises(calls: &[Call]) -> (Promises, Promises) {
    let (mut acknowledged, mut ended) = (Promises::new(), Promises::new());
    let mut streams: HashMap<&str, String> = HashMap::new();
    for call in calls {
        let What::Send { socket, bytes } = &call.what else { continue };
        let text = String::from_utf8_lossy(bytes);
        if text.starts_with("HTTP/1.1 2")
            && let Some(job) = header(&text, "x-rbees-job-id: ")
        {
            acknowledged.push((call.began, job.to_owned()));
            streams.insert(socket, job.to_owned());
        }
        if text.contains("event: end\n")
            && let Some(job) = streams.get(socket.as_str())
        {
            ended.push((call.began, job.clone()));
        }
    }
    (acknowledged, ended)
}

fn header<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    Some(text.split_once(name)?.1.split_once('\r')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(what: What, line: usize) -> Call {
        Call { what, began: line, ended: line }
    }

    fn path() -> String {
        "/h/orchestrator.db".to_owned()
    }

    fn written(offset: u64, byte: u8) -> What {
        What::Write { path: path(), offset, bytes: vec![byte; 1024] }
    }

    fn disk() -> Disk {
        let calls = [
            call(What::Create { path: path() }, 0),
            call(written(0, b'a'), 1),
            call(What::Sync { path: path() }, 2),
            call(What::Sync { path: "/h".to_owned() }, 3),
            call(written(0, b'b'), 4),
            call(written(1024, b'c'), 5),
        ];
        Disk::of(&calls, Path::new("/h"))
    }

    fn file(files: &Files) -> Option<&[u8]> {
        files.get("orchestrator.db").map(Vec::as_slice)
    }

    #[test]
    fn what_was_synced_stays_and_the_rest_may_go() {
        let disk = disk();
        let mut rng = Rng::new(1);
        assert_eq!(file(&disk.after(6, Fate::Dropped, &mut rng)), Some(&[b'a'; 1024][..]));
        let kept = disk.after(6, Fate::Kept, &mut rng);
        assert_eq!(file(&kept), Some(&[[b'b'; 1024], [b'c'; 1024]].concat()[..]));
    }

    #[test]
    fn a_file_without_a_synced_name_may_be_gone_with_its_synced_bytes() {
        assert_eq!(file(&disk().after(3, Fate::Dropped, &mut Rng::new(1))), None);
    }

    #[test]
    fn a_torn_write_changes_whole_sectors() {
        let mut shapes = BTreeSet::new();
        for seed in 0..64 {
            let files = disk().after(5, Fate::Torn, &mut Rng::new(seed));
            let bytes = file(&files).expect("the name is safe").to_vec();
            assert!(bytes.chunks(SECTOR).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
            shapes.insert(bytes.chunks(SECTOR).map(|sector| sector[0]).collect::<Vec<_>>());
        }
        assert_eq!(shapes.len(), 4, "each of two sectors is old or new");
    }

    #[test]
    fn a_reordering_disk_can_keep_the_later_write_alone() {
        let found = (0..64).any(|seed| {
            let files = disk().after(6, Fate::Reordered, &mut Rng::new(seed));
            file(&files) == Some(&[[b'a'; 1024], [b'c'; 1024]].concat()[..])
        });
        assert!(found);
    }

    #[test]
    fn promises_are_read_from_what_clients_were_sent() {
        let send = |bytes: &str| What::Send { socket: "s".to_owned(), bytes: bytes.as_bytes().to_vec() };
        let calls = [
            call(send("HTTP/1.1 200 OK\r\nx-rbees-job-id: job_1\r\n\r\n"), 3),
            call(send("id: 1\nevent: end\ndata: {}\n\n"), 9),
        ];
        let disk = Disk::of(&calls, Path::new("/h"));
        assert!(disk.acknowledged_before(3).is_empty() && disk.ended_before(9).is_empty());
        assert_eq!(disk.acknowledged_before(4), BTreeSet::from(["job_1"]));
        assert_eq!(disk.ended_before(10), BTreeSet::from(["job_1"]));
    }
}
