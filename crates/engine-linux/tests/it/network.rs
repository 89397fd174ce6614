//! The two halves of the engine together.

use crate::bed::{Bed, test};
use moat_model::NativeRuntime::Python;
use std::os::fd::OwnedFd;

#[test]
fn an_instance_has_its_addresses_before_its_first_instruction_and_reaches_another() {
    test(async |bed: &Bed| {
        let mut server = bed.native(
            Python,
            "hostname -I | tr ' ' '\\n' | grep -v '^$'; echo hello > index.txt; exec python3 -m http.server 8000 --bind ::",
        );
        bed.release(&mut server).await;
        bed.start(&server).await.unwrap();
        bed.logged(&server.id, &server.address.v6.to_string()).await;
        assert_eq!(bed.log(&server.id)[0], server.address.v4.to_string());
        let mut client = bed.native(Python, "sleep 600");
        client.release.clone_from(&server.release);
        bed.start(&client).await.unwrap();
        for host in [server.address.v4.to_string(), format!("[{}]", server.address.v6)] {
            let null = || OwnedFd::from(std::fs::File::options().read(true).write(true).open("/dev/null").unwrap());
            let script = format!(
                "import urllib.request,time\nfor _ in range(300):\n  try: print(urllib.request.urlopen('http://{host}:8000/index.txt', timeout=5).read()); break\n  except OSError: time.sleep(0.02)\nelse: raise SystemExit(9)"
            );
            let argv = ["python3", "-c", &script].map(str::to_owned).to_vec();
            let said = tempfile::NamedTempFile::new().unwrap();
            let stdio = [null(), null(), said.reopen().unwrap().into()];
            let code = bed.engine.exec(&client.id, argv, std::collections::BTreeMap::default(), false, stdio).await.unwrap();
            assert_eq!(code, 0, "{host}: {}", std::fs::read_to_string(said.path()).unwrap());
        }
    });
}
