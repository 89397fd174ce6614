import ensurepip, glob, os, sys, sysconfig, zipfile

def wheel(name):
    for folder in (os.path.join(os.path.dirname(ensurepip.__file__), "_bundled"), "/usr/share/python-wheels"):
        found = sorted(glob.glob(os.path.join(folder, name + "-*.whl")))
        if found:
            return found[-1]
    sys.exit(1)

names = ["pip"] if sys.version_info >= (3, 12) else ["setuptools", "pip"]
for path in [wheel(name) for name in names]:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(sysconfig.get_path("purelib"))
text = "#!" + sys.executable + "\nimport sys\nfrom pip._internal.cli.main import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
for name in ("pip", "pip3", "pip%d.%d" % sys.version_info[:2]):
    path = os.path.join(sysconfig.get_path("scripts"), name)
    with open(path, "w") as script:
        script.write(text)
    os.chmod(path, 0o755)
