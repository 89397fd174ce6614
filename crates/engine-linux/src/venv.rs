//! A Python environment with pip, made in a second.
//!
//! `python3 -m venv` runs pip to install pip and compiles all of it, which takes most of a small build's time. The same wheels that
//! it would install are unpacked here instead; what is imported is compiled then. Where they aren't found, `python3 -m venv` it is.

/// Unpacks pip into the environment whose Python runs it: the wheels are those of `ensurepip`, which Debian keeps elsewhere.
const PROGRAM: &str = include_str!("venv.py");

/// Shell commands that make an environment at a place, an absolute path, where there is none or one that was not finished.
pub fn make(place: &str) -> String {
    let unfinished = format!("{place}/.unfinished");
    format!(
        "if ! test -x {place}/bin/python || test -e {unfinished}; then\n\
         mkdir -p {place}\n\
         : > {unfinished}\n\
         {{ python3 -m venv --without-pip {place} && {place}/bin/python -I - 2>/dev/null <<'END_OF_PROGRAM'\n\
         {PROGRAM}\
         END_OF_PROGRAM\n\
         }} || python3 -m venv --clear {place}\n\
         rm -f {unfinished}\n\
         fi"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn sh(script: &str) -> String {
        let output = Command::new("bash").args(["-e", "-c", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn pip_installs_into_it_and_knows_itself() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("venv").display().to_string();
        sh(&make(&place));
        assert!(!std::path::Path::new(&format!("{place}/.unfinished")).exists());
        assert!(sh(&format!("{place}/bin/pip --version")).contains(&place));
        let list = sh(&format!("{place}/bin/pip list --format=freeze --disable-pip-version-check"));
        assert!(list.contains("pip=="), "{list}");
        let package = folder.path().join("one-1-py3-none-any.whl").display().to_string();
        let files = "{'one.py': 'WORD = 7', 'one-1.dist-info/METADATA': 'Metadata-Version: 2.1\\nName: one\\nVersion: 1\\n', \
            'one-1.dist-info/WHEEL': 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n', 'one-1.dist-info/RECORD': ''}";
        let python = format!("{place}/bin/python");
        sh(&format!(
            "{python} -c \"import zipfile; a = zipfile.ZipFile('{package}', 'w'); [a.writestr(*f) for f in {files}.items()]; a.close()\""
        ));
        sh(&format!("{place}/bin/pip install --quiet --no-index --disable-pip-version-check {package}"));
        assert_eq!(sh(&format!("cd / && {python} -c 'import one; print(one.WORD)'")), "7\n");
    }

    #[test]
    fn one_that_was_not_finished_is_made_anew_and_another_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("venv").display().to_string();
        sh(&format!("mkdir -p {place}/bin; ln -s /bin/false {place}/bin/python; : > {place}/.unfinished"));
        sh(&make(&place));
        sh(&format!("{place}/bin/python -m pip --version; rm {place}/bin/pip"));
        sh(&make(&place));
        assert!(!std::path::Path::new(&format!("{place}/bin/pip")).exists());
    }
}
