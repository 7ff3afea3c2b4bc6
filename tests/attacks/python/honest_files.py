# expected: passed
# No attack: temporary files, in the working folder and elsewhere, with modes, times and copies.
import os
import shutil
import tempfile


def twice(xs):
    with open("numbers", "w") as file:
        file.write(" ".join(str(2 * x) for x in xs))
    os.chmod("numbers", 0o600)
    os.utime("numbers")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy2("numbers", folder)
        shutil.copytree(folder, folder + "-copy")
        shutil.rmtree(folder + "-copy")
        with open(os.path.join(folder, "numbers")) as file:
            return [int(number) for number in file.read().split()]
