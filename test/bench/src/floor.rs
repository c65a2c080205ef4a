//! The floor: what the way of the bytes takes when nobody looks at them.
//!
//! ```text
//! driver ==pipe==> relay ==socket==> relay ==pipe==> far end
//!        <=pipe===       <=socket===       <=pipe===
//! ```
//!
//! Each is a process, as a VM and a sidecar are. A relay has its socket as standard error: that is
//! how a process gets a third descriptor without unsafe code.

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

/// What a small message is with all that a VM puts around it.
const PING: usize = 64;
/// As the sidecar sets it.
const PIPE_SIZE: i32 = 1 << 20;
/// What a relay copies, and what it splices at once.
const COPY: usize = 16 << 10;
const SPLICE: usize = 1 << 20;
/// A VM reads so much at once.
const READ: usize = 64 << 10;
/// The last byte of a stream; all others are 0.
const LAST: u8 = 1;

/// Prints percentiles of so many round trips.
pub fn round_trips(count: usize) -> io::Result<()> {
    let mut way = Way::to(ECHO)?;
    let mut ping = [0; PING];
    let mut times = Vec::with_capacity(count);
    for number in 0..count + count / 10 {
        let start = Instant::now();
        way.input.write_all(&ping)?;
        way.output.read_exact(&mut ping)?;
        // The first ones are for warming up.
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

/// Prints the rate of messages of so many bytes that are sent for so many milliseconds.
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

/// What one of the other processes does. False if there is no such role.
pub fn play(role: &str) -> io::Result<bool> {
    match role {
        RELAY => relay()?,
        ECHO => echo()?,
        SINK => sink()?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// The driver's end of the way. The processes on it end with it.
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
        // From the far end on: none of them sees another one's end.
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

/// Passes on what comes, both ways.
fn relay() -> io::Result<()> {
    let from_pipe = File::from(own(io::stdin().as_fd())?);
    let to_pipe = File::from(own(io::stdout().as_fd())?);
    let to_socket = File::from(own(io::stderr().as_fd())?);
    let from_socket = to_socket.try_clone()?;
    thread::spawn(move || pass_on(from_socket, to_pipe));
    pass_on(from_pipe, to_socket)
}

/// What is short is copied, and the rest of what is long is spliced, as long as there is some. A
/// splice(2) that waits for a socket would lock the pipe for whoever reads it.
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

/// Answers the last byte.
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
