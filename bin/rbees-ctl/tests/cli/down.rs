//! `rbees down` stops the orchestrator that holds this home, and nobody else.

use std::fs::File;
use std::process::{Child, Command, Stdio};

use crate::program::Program;

const POOL: &str = "#!/bin/sh\ncat >/dev/null &\necho '{\"workers\":[]}'\n";

fn program() -> Program {
    let program = Program::install().with_script("rbees-pool", POOL);
    std::fs::create_dir_all(program.home()).expect("created");
    program
}

fn write_lock(program: &Program, pid: u32) -> File {
    let path = program.home().join("orchestrator.lock");
    std::fs::write(&path, format!("{{\"pid\":{pid},\"url\":\"http://127.0.0.1:9\",\"version\":\"0\"}}"))
        .expect("written");
    File::open(path).expect("there")
}

fn sleeper() -> Child {
    Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("sleep")
}

#[test]
fn a_process_that_only_has_the_number_is_left_alone() {
    let program = program();
    let mut stranger = sleeper();
    let _not_locked = write_lock(&program, stranger.id());
    let run = program.run(&["down"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.err.contains("no orchestrator"), "{}", run.err);
    assert_eq!(stranger.try_wait().expect("asked"), None, "the stranger lives");
    stranger.kill().expect("killed");
    let _ = stranger.wait();
}

#[test]
fn the_holder_of_the_lock_is_asked_to_end_and_waited_for() {
    let program = program();
    // The lock belongs to the open file, which the child inherits as its standard input.
    let lock = write_lock(&program, 0);
    lock.lock().expect("locked");
    let mut holder = Command::new("sleep").arg("600").stdin(lock).spawn().expect("sleep");
    std::fs::write(
        program.home().join("orchestrator.lock"),
        format!("{{\"pid\":{},\"url\":\"http://127.0.0.1:9\",\"version\":\"0\"}}", holder.id()),
    )
    .expect("written");
    let reaper = std::thread::spawn(move || holder.wait().expect("it ends"));
    let run = program.run(&["--json", "down"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.out.contains("http://127.0.0.1:9"), "{}", run.out);
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(reaper.join().expect("joined").signal(), Some(15));
}

#[test]
fn down_on_a_bare_home_is_fine() {
    let program = program();
    std::fs::remove_dir_all(program.home()).expect("removed");
    let run = program.run(&["down"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
}
