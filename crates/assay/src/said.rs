//! What daemons say besides their logs. Where it cannot be written, as on a full disk, they go on: `println!` and `eprintln!` would end them.

/// Says a line on standard output.
macro_rules! say {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        // Nobody can be told.
        let _ = writeln!(std::io::stdout(), $($line)*);
    }};
}

/// Says a line on standard error.
macro_rules! note {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        // Nobody can be told.
        let _ = writeln!(std::io::stderr(), $($line)*);
    }};
}
