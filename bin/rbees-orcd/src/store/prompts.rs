//! Large requests, each in a file of its own beside the database: a commit stays small however
//! long a prompt is, and the driver never waits for one.
//!
//! A file is on disk, name and all, before the commit that acknowledges its job, and is
//! overwritten with zeros and removed after the commit that ends it, or that deletes it where requests
//! are kept. What a crash leaves between the two is swept at the next start.

use std::collections::HashSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api_types::JobId;

use super::StoreError;

/// Requests of more bytes than this lie in a file.
pub const LARGEST_IN_ROW: usize = 16 * 1024;
/// Name of the folder in the state root.
pub const FOLDER: &str = "prompts";
/// Zeros written at once over what is erased.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// The folder of large requests. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Prompts {
    folder: Arc<Path>,
}

impl Prompts {
    /// Makes the folder in the state root, durably, for its owner only.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn open(home: &Path) -> Result<Self, StoreError> {
        let folder = home.join(FOLDER);
        make_folder(&folder).and_then(|()| sync_folder(home)).map_err(failed(&folder))?;
        Ok(Self { folder: folder.into() })
    }

    /// Writes a request. When this returns, it survives a power cut.
    ///
    /// # Errors
    /// When the system refuses; nothing is left then.
    pub fn store(&self, job_id: JobId, json: &[u8]) -> Result<(), StoreError> {
        let path = self.path(job_id);
        let written = write_new(&path, json).and_then(|()| sync_folder(&self.folder));
        if let Err(error) = written {
            // Without its commit nobody refers to it; the sweep at the next start finds it too.
            let _ = std::fs::remove_file(&path);
            return Err(StoreError::File { path, error });
        }
        Ok(())
    }

    /// The JSON of a large request.
    ///
    /// # Errors
    /// When the file is gone or cannot be read.
    pub fn load(&self, job_id: JobId) -> Result<Vec<u8>, StoreError> {
        let path = self.path(job_id);
        let mut json = Vec::new();
        File::open(&path).and_then(|mut file| file.read_to_end(&mut json)).map_err(failed(&path))?;
        Ok(json)
    }

    /// Overwrites a request and removes it. One that is not there is gone already.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn erase(&self, job_id: JobId) -> Result<(), StoreError> {
        let path = self.path(job_id);
        erase_file(&path).map_err(failed(&path))
    }

    /// Erases every file that belongs to none of `wanted`; says how many there were.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn sweep(&self, wanted: &HashSet<JobId>) -> Result<usize, StoreError> {
        let mut swept = 0;
        for entry in std::fs::read_dir(&self.folder).map_err(failed(&self.folder))? {
            let path = entry.map_err(failed(&self.folder))?.path();
            if job_of(&path).is_none_or(|job_id| !wanted.contains(&job_id)) {
                erase_file(&path).map_err(failed(&path))?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    fn path(&self, job_id: JobId) -> PathBuf {
        self.folder.join(format!("{job_id}.json"))
    }
}

fn job_of(path: &Path) -> Option<JobId> {
    path.file_name()?.to_str()?.strip_suffix(".json")?.parse().ok()
}

fn failed(path: &Path) -> impl Fn(io::Error) -> StoreError + '_ {
    |error| StoreError::File { path: path.to_owned(), error }
}

fn make_folder(folder: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

fn write_new(path: &Path, json: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(json)?;
    file.sync_all()
}

fn erase_file(path: &Path) -> io::Result<()> {
    let mut file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut left = file.metadata()?.len();
    while left > 0 {
        let piece = left.min(ZEROS.len() as u64);
        file.write_all(ZEROS.get(..usize::try_from(piece).unwrap_or(ZEROS.len())).unwrap_or(&ZEROS))?;
        left -= piece;
    }
    file.sync_data()?;
    std::fs::remove_file(path)
}

/// Makes the names in a folder survive a power cut.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn job(number: u128) -> JobId {
        JobId::from_uuid(Uuid::from_u128(number))
    }

    #[test]
    fn a_request_comes_back_until_it_is_erased() {
        let home = tempfile::tempdir().expect("a folder");
        let prompts = Prompts::open(home.path()).expect("opened");
        let large = vec![b'b'; LARGEST_IN_ROW + 1];
        prompts.store(job(2), &large).expect("stored");
        assert_eq!(prompts.load(job(2)).expect("there"), large);
        prompts.erase(job(2)).expect("erased");
        prompts.erase(job(2)).expect("erasing twice is erasing once");
        assert!(prompts.load(job(2)).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read_and_erasing_reaches_the_bytes() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().expect("a folder");
        let prompts = Prompts::open(home.path()).expect("opened");
        prompts.store(job(1), &[b's'; 100_000]).expect("stored");
        let path = prompts.path(job(1));
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&home.path().join(FOLDER))), (0o600, 0o700));
        // Another name shows what the erased file held at its end.
        let other = home.path().join("other");
        std::fs::hard_link(&path, &other).expect("linked");
        prompts.erase(job(1)).expect("erased");
        let held = std::fs::read(other).expect("read");
        assert!(held.len() == 100_000 && held.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_belongs_to_no_wanted_job_is_swept() {
        let home = tempfile::tempdir().expect("a folder");
        let prompts = Prompts::open(home.path()).expect("opened");
        for number in 1..=3 {
            prompts.store(job(number), &[b'x'; 20_000]).expect("stored");
        }
        std::fs::write(home.path().join(FOLDER).join("half.json"), "x").expect("written");
        assert_eq!(prompts.sweep(&HashSet::from([job(2)])).expect("swept"), 3);
        assert!(prompts.load(job(2)).is_ok() && prompts.load(job(1)).is_err());
    }
}
