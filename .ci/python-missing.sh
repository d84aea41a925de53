#!/usr/bin/env bash
# Says what to do on a machine without a recent Python. The last line is a command to run; $1 is the command that was run.
found=$(python3 -c 'import platform; print(platform.python_version())' 2>/dev/null || true)
sudo=$([ "$(id -u)" = 0 ] || echo "sudo ")
echo "Python 3.11 or newer with its venv module is needed${found:+; python3 here is $found}."
if [ -z "$found" ] || python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    packages="python3 python3-venv"
else
    packages="python3.11 python3.11-venv"
fi
if command -v apt-get >/dev/null; then
    echo "Run: ${sudo}apt-get update && ${sudo}apt-get install -y $packages && $1"
else
    echo "Run: $1 PYTHON=/path/to/python3.11   # once it is installed"
fi
