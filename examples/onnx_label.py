"""What an exported head says of a recording: python onnx_label.py model.onnx recording.wav (16 kHz, mono, 16 bits)"""

import json
import sys
import wave

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
with wave.open(sys.argv[2]) as file:
    if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (16000, 1, 2):
        sys.exit(f"{sys.argv[2]} is not 16 kHz, mono, 16 bits")
    samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
_, *scores = session.run(None, {"waveform": samples[None], "lengths": np.array([len(samples)])})
for (slot, names), probabilities in zip(labels.items(), scores, strict=True):
    of_each = np.array(probabilities)[0]
    print(f"{slot}: {names[of_each.argmax()]} ({100 * of_each.max():.1f} %)")
