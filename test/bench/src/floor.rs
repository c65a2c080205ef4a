//! The floor: the cost of passing bytes on the same path without any VM.
//!
//! ```text
//! driver ==pipe==> relay ==socket==> relay ==pipe==> far end
//!        <=pipe===       <=socket===       <=pipe===
//! ```
//!
//! Each of these is a process, like a VM or a sidecar. A relay gets its socket as standard error, because this is the
//! only way to pass a third descriptor to a process without unsafe code.

use std::env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, splice};

const RELAY: &str = "relay";
const ECHO: &str = "echo";
const SINK: &str = "sink";

/// Bytes of a small message, including everything that a VM adds to it.
const PING: usize = 64;
/// Size of the pipes, as in the sidecar.
const PIPE_SIZE: i32 = 1 << 20;
/// Most bytes that a relay copies, and most bytes that it splices at once.
const COPY: usize = 16 << 10;
const SPLICE: usize = 1 << 20;
/// Bytes that a VM reads at once.
const READ: usize = 64 << 10;
/// The value of the last byte of a stream. All others are 0.
const LAST: u8 = 1;

/// Prints percentiles of this number of round trips.
pub fn round_trips(count: usize) -> io::Result<()> {
    let mut way = Way::to(ECHO)?;
    let mut ping = [0; PING];
    let mut times = Vec::with_capacity(count);
    for number in 0..count + count / 10 {
        let start = Instant::now();
        way.input.write_all(&ping)?;
        way.output.read_exact(&mut ping)?;
        // The first ones only warm up.
        if number >= count / 10 {
            times.push(start.elapsed());
        }
    }
    times.sort();
    for (name, part) in [("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)] {
        let place = (part * count as f64).ceil() as usize;
        let time = times.get(place.saturating_sub(1)).copied();
        println!(
            "{name}\t{:.3}",
            time.unwrap_or_default().as_secs_f64() * 1e6
        );
    }
    Ok(())
}

/// Prints the rate at which messages of this size are sent, measured over this number of milliseconds.
pub fn stream(size: usize, milliseconds: u64) -> io::Result<()> {
    let mut way = Way::to(SINK)?;
    let mut message = vec![0; size];
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < Duration::from_millis(milliseconds) {
        way.input.write_all(&message)?;
        sent += size;
    }
    if let Some(last) = message.last_mut() {
        *last = LAST;
    }
    way.input.write_all(&message)?;
    sent += size;
    way.output.read_exact(&mut [0])?;
    println!(
        "mb_s\t{:.3}",
        sent as f64 / 1e6 / start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Runs one of the other processes. False if there is no such role.
pub fn play(role: &str) -> io::Result<bool> {
    match role {
        RELAY => relay()?,
        ECHO => echo()?,
        SINK => sink()?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// The driver's end of the path. The other processes end with it.
struct Way {
    input: ChildStdin,
    output: ChildStdout,
    processes: Vec<Child>,
}

impl Way {
    fn to(far_end: &str) -> io::Result<Way> {
        let (near, far) = UnixStream::pair()?;
        let mut processes = Vec::new();
        let (input, output) = start(RELAY, near, &mut processes)?;
        let (from_far, to_far) = start(RELAY, far, &mut processes)?;
        let end = Command::new(env::current_exe()?)
            .arg(far_end)
            .stdin(to_far)
            .stdout(from_far)
            .spawn()?;
        processes.push(end);
        Ok(Way {
            input,
            output,
            processes,
        })
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        // Started from the far end, so that no process inherits a descriptor of another one.
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn start(
    role: &str,
    socket: UnixStream,
    processes: &mut Vec<Child>,
) -> io::Result<(ChildStdin, ChildStdout)> {
    let mut child = Command::new(env::current_exe()?)
        .arg(role)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(OwnedFd::from(socket))
        .spawn()?;
    let pipes = (child.stdin.take(), child.stdout.take());
    processes.push(child);
    let (Some(input), Some(output)) = pipes else {
        return Err(io::Error::other("a child process has no pipes"));
    };
    fcntl(&input, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE))?;
    fcntl(&output, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE))?;
    Ok((input, output))
}

/// Passes bytes on in both directions.
fn relay() -> io::Result<()> {
    let from_pipe = File::from(own(io::stdin().as_fd())?);
    let to_pipe = File::from(own(io::stdout().as_fd())?);
    let to_socket = File::from(own(io::stderr().as_fd())?);
    let from_socket = to_socket.try_clone()?;
    thread::spawn(move || pass_on(from_socket, to_pipe));
    pass_on(from_pipe, to_socket)
}

/// Copies short input, and splices the rest of long input while there is some. A splice(2) that waits for a socket
/// would lock the pipe for its reader.
fn pass_on(mut from: File, mut to: File) -> io::Result<()> {
    let mut buffer = vec![0; COPY];
    loop {
        let count = from.read(&mut buffer)?;
        to.write_all(&buffer[..count])?;
        match count {
            0 => return Ok(()),
            COPY => {
                while let Ok(1..) = splice(
                    &from,
                    None,
                    &to,
                    None,
                    SPLICE,
                    SpliceFFlags::SPLICE_F_NONBLOCK,
                ) {}
            }
            _ => {}
        }
    }
}

fn echo() -> io::Result<()> {
    let mut input = File::from(own(io::stdin().as_fd())?);
    let mut output = File::from(own(io::stdout().as_fd())?);
    let mut ping = [0; PING];
    loop {
        input.read_exact(&mut ping)?;
        output.write_all(&ping)?;
    }
}

/// The far end, which answers the last byte.
fn sink() -> io::Result<()> {
    let mut input = File::from(own(io::stdin().as_fd())?);
    let mut buffer = vec![0; READ];
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(()),
            count if buffer[count - 1] == LAST => {
                return File::from(own(io::stdout().as_fd())?).write_all(&[LAST]);
            }
            _ => {}
        }
    }
}

/// A descriptor without the buffers of the standard library.
fn own(descriptor: BorrowedFd) -> io::Result<OwnedFd> {
    descriptor.try_clone_to_owned()
}
