//! The pages of codes: their examples give what they say.

use moat_blueprint::{CODES, explain_code, read};

/// The YAML blocks of a page.
fn blocks(page: &str) -> Vec<&str> {
    page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn every_page_begins_with_its_code_and_its_examples_hold() {
    let without_example = ["E0102", "E0103", "E0104", "E0112", "E0113"];
    for code in CODES {
        let page = explain_code(code).unwrap();
        assert!(page.starts_with(&format!("# {code}: ")), "{code}");
        assert!(page.len() > 200, "{code} says too little");
        let codes = |text: &str| -> Vec<&str> { read(text).diagnostics.iter().map(|d| d.code).collect() };
        match blocks(page).as_slice() {
            [] => assert!(without_example.contains(code), "{code} has no example"),
            [wrong, right] => {
                assert!(codes(wrong).contains(code), "{code}: the example gives {:?}", codes(wrong));
                let left: Vec<&str> = codes(right).into_iter().filter(|c| *c != "E0209").collect();
                assert!(left.is_empty(), "{code}: the mended example gives {left:?}");
            }
            more => panic!("{code} has {} blocks", more.len()),
        }
    }
    assert_eq!(explain_code("E9999"), None);
}

#[test]
fn a_page_says_the_severity_of_its_code() {
    for code in CODES {
        let page = explain_code(code).unwrap();
        let said = page.lines().find_map(|line| line.strip_prefix("Severity: ")).unwrap();
        let Some(wrong) = blocks(page).first().copied() else { continue };
        let diagnostics = read(wrong).diagnostics;
        let diagnostic = diagnostics.iter().find(|d| d.code == *code).unwrap();
        let word = format!("{:?}", diagnostic.severity).to_lowercase();
        assert!(said.starts_with(&word), "{code} is {word}, its page says {said}");
    }
}
