"""What an exported recogniser hears: python onnx_transcript.py model.onnx recording.wav (16 kHz, mono, 16 bits)"""

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
writes = json.loads(session.get_modelmeta().custom_metadata_map["writes"])  # what each class writes; the blank nothing
_, logits = session.run(["frames", "logits"], {"waveform": samples[None], "lengths": np.array([len(samples)])})
best = np.array(logits)[0].argmax(-1)
kept = best[np.append(True, best[1:] != best[:-1])]  # of equal ones in a row, the first
print(" ".join("".join(writes[index] for index in kept).split()))
