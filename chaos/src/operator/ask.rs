//! Nothing is broken unasked.

use std::io::{self, BufRead, IsTerminal, Read, Write};

/// Says what will be done; true if somebody wants that.
pub(super) fn sure(what: &str, yes: bool) -> Result<bool, String> {
    println!("{what}");
    if yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        return Err("nobody can be asked here, because the input is no terminal: give --yes to do it unasked".into());
    }
    print!("Do it? [y/N] ");
    io::stdout().flush().map_err(|error| error.to_string())?;
    let mut answer = String::new();
    io::stdin().lock().take(100).read_line(&mut answer).map_err(|error| error.to_string())?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
