//! `moat upgrade`.
//!
//! Where Moat is installed, the service manager starts it from one place, after a crash and after a reboot: a program from elsewhere
//! is put there first, or the next start would go back to the one before.

use super::{ask_one, install, need_root, own_exe};
use crate::args::UpgradeArgs;
use crate::command_error::CommandError;
use crate::ui::Ui;
use moat_daemon::Paths;
use moat_daemon::client::{self, ClientError};
use moat_daemon::protocol::{Event, Request, Status};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long the new program may take until it answers, adopting what runs included.
const ANSWERS_WITHIN: Duration = Duration::from_mins(1);

/// Has the background process and the data plane go on as another program.
pub async fn run(args: UpgradeArgs, ui: &Ui) -> Result<ExitCode, CommandError> {
    need_root()?;
    let paths = Paths::from_env();
    let program = match args.binary {
        Some(file) => {
            std::fs::canonicalize(&file).map_err(|error| CommandError::usage(format!("can't use `{}`: {error}", file.display())))?
        }
        None => own_exe()?,
    };
    let before = status().await?;
    let placed = match place_of(&before).filter(|place| *place != program) {
        Some(place) => put(&program, &place).await?,
        None => None,
    };
    let program = placed.as_ref().map_or(program, |placed| placed.place.clone());
    let handed_over = hand_over(&paths, &program, ui).await;
    let now = match &handed_over {
        Ok(()) => answered_by(&program).await,
        Err(_) => None,
    };
    match (&now, placed) {
        (Some(_), Some(placed)) => placed.keep(),
        (None, Some(placed)) => placed.undo()?,
        (_, None) => {}
    }
    handed_over?;
    let Some(now) = now else {
        let old = PathBuf::from(&before.program);
        let back = old.exists() && client::ensure(&paths, &old).await.is_ok();
        let what = if back { "the one before runs again" } else { "what runs goes on without a background process" };
        return Err(CommandError::engine(format!("`{}` did not come up; {what}", program.display()))
            .hint(format!("`{}` says why", paths.daemon_log().display())));
    };
    if ui.json() {
        ui.print_json(&serde_json::json!({ "program": now.program, "version": now.version }))?;
    } else {
        ui.say(&format!("Moat {} runs now; no workload was touched", now.version));
    }
    Ok(ExitCode::SUCCESS)
}

/// Has the background process become a program; it hangs up when it does.
async fn hand_over(paths: &Paths, program: &Path, ui: &Ui) -> Result<(), CommandError> {
    let mut talk = client::ask(paths, &Request::Upgrade { program: program.to_owned() }).await?;
    loop {
        match talk.next().await {
            Ok(Some(Event::Notice { text, .. })) if !ui.json() => ui.say(&text),
            Ok(Some(Event::End { error: Some(failure) })) => return Err(failure.into()),
            Ok(Some(_)) => {}
            Ok(None) | Err(ClientError::Broken(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Where the service manager would start the background process from that runs now, if it would.
fn place_of(now: &Status) -> Option<PathBuf> {
    let place = install::installed()?;
    let is_its = fs::read_to_string(format!("/proc/{}/cgroup", now.daemon_pid)).is_ok_and(|group| group.contains("/moat.service"));
    // Another Moat, with folders of its own, is none of its business.
    (is_its || place == Path::new(&now.program)).then_some(place)
}

/// A program that was put in the place of another, which lies beside it.
#[derive(Debug)]
struct Placed {
    place: PathBuf,
    before: PathBuf,
}

/// Puts a program in the place of the installed one, at once. Nothing where it can't take over, which the daemon says why.
async fn put(program: &Path, place: &Path) -> Result<Option<Placed>, CommandError> {
    let Ok((mut file, _)) = moat_daemon::look_at_program(program).await else { return Ok(None) };
    let put = Placed::put(&mut file, place);
    put.map(Some).map_err(|error| CommandError::engine(format!("can't put it in the place of `{}`: {error}", place.display())))
}

impl Placed {
    fn put(program: &mut File, place: &Path) -> io::Result<Self> {
        let beside = |end: &str| {
            let mut path = place.as_os_str().to_owned();
            path.push(end);
            PathBuf::from(path)
        };
        let (aside, before) = (beside(".new"), beside(".before"));
        for left in [&aside, &before] {
            match fs::remove_file(left) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let mut to = OpenOptions::new().write(true).create_new(true).mode(0o700).open(&aside)?;
        io::copy(program, &mut to)?;
        to.set_permissions(Permissions::from_mode(0o755))?;
        to.sync_all()?;
        // A file that is open to be written can't be run.
        drop(to);
        fs::hard_link(place, &before)?;
        fs::rename(&aside, place)?;
        sync_folder(place)?;
        Ok(Self { place: place.to_owned(), before })
    }

    /// The one before is not needed any more.
    fn keep(self) {
        // One that stays does no harm.
        let _ = fs::remove_file(self.before);
    }

    /// The one before is there again.
    fn undo(self) -> Result<(), CommandError> {
        fs::rename(&self.before, &self.place).and_then(|()| sync_folder(&self.place)).map_err(|error| {
            CommandError::engine(format!("`{}` can't be put back: {error}", self.place.display()))
                .hint(format!("the program before is `{}`", self.before.display()))
        })
    }
}

fn sync_folder(of: &Path) -> io::Result<()> {
    of.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

async fn status() -> Result<Status, CommandError> {
    ask_one(Request::Status, |event| match event {
        Event::Status(status) => Some(status),
        _ => None,
    })
    .await
}

/// The status that this program gives, once it answers.
async fn answered_by(program: &Path) -> Option<Status> {
    let began = Instant::now();
    while began.elapsed() < ANSWERS_WITHIN {
        if let Ok(status) = status().await
            && Path::new(&status.program) == program
        {
            return Some(status);
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_takes_anothers_place_or_leaves_it() {
        let folder = tempfile::tempdir().unwrap();
        let (place, other) = (folder.path().join("moat"), folder.path().join("other"));
        fs::write(&place, "the one before").unwrap();
        fs::write(&other, "the new one").unwrap();
        // What an earlier one left that was killed.
        fs::write(folder.path().join("moat.new"), "half").unwrap();
        let left = || {
            let mut names: Vec<String> =
                fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let put = || Placed::put(&mut File::open(&other).unwrap(), &place).unwrap();
        put().undo().unwrap();
        assert_eq!((fs::read_to_string(&place).unwrap().as_str(), left()), ("the one before", vec!["moat".to_owned(), "other".to_owned()]));
        put().keep();
        assert_eq!((fs::read_to_string(&place).unwrap().as_str(), left()), ("the new one", vec!["moat".to_owned(), "other".to_owned()]));
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o755);
    }
}
