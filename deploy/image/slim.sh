#!/bin/sh
# slim.sh EXTRA: take out of the image's environment what the server never loads, by name. check_image.py plays golden
# cases, an episode and every datatype on what is left, and holds it to its size.
set -eu
bin=/opt/venv/bin
site=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')

# For the command line, for ONNX Runtime's tools, and to install.
"$bin/pip" uninstall --yes --quiet tyro docstring-parser typeguard packaging flatbuffers
[ "$1" = grpc ] || "$bin/pip" uninstall --yes --quiet protobuf typing-extensions
"$bin/pip" uninstall --yes --quiet setuptools pip

# The wheel has ONNX Runtime twice: Python loads onnxruntime_pybind11_state, which holds all of it.
rm -f "$site"/onnxruntime/capi/libonnxruntime.so*
for unused in backend datasets quantization tools transformers; do rm -rf "$site/onnxruntime/$unused"; done
for unused in _core/include _core/lib _pyinstaller distutils f2py random/lib; do rm -rf "$site/numpy/$unused"; done

find "$site" -type d -name tests -prune -exec rm -rf {} +
find "$site" -type f \( -name '*.py[ix]' -o -name '*.px[di]' -o -name '*.c' -o -name '*.h' -o -name '*.a' \) -delete
find "$bin" -type f ! -name 'python*' -delete

# The program, as an installation of the project has it.
cat > "$bin/trpo-tf" <<EOF
#!$bin/python
from trpo_tf.__main__ import main

main()
EOF
chmod 755 "$bin/trpo-tf"
