"""Calls that each method serves. The fuzzer sends them as they are and with some fields changed."""

from __future__ import annotations

from typing import Any

import numpy as np
from csm.backbone.v1 import backbone_pb2 as backbone
from csm.codec.v1 import codec_pb2 as codec
from csm.common.v1 import common_pb2 as common
from csm.speech.v1 import speech_pb2 as speech
from csm.tokenizer.v1 import tokenizer_pb2 as tokenizer
from csm.voice.v1 import voice_pb2 as voice
from csm.watermark.v1 import watermark_pb2 as watermark

from models.bundle import load_bundle
from services.runtime.audio import wav_bytes

CODEBOOKS = load_bundle("embedded").codebooks
_RATE_HZ = 24_000
_SECOND = (8000 / 32768 * np.sin(np.arange(_RATE_HZ) / 20)).astype(np.float32)
_SAMPLES = _SECOND[: int(0.4 * _RATE_HZ)]  # a longer search for the mark takes most of the time of a run
_WAV = wav_bytes(_SAMPLES, _RATE_HZ)
_FORMAT = common.AudioFormat(encoding=common.AUDIO_ENCODING_PCM_F32LE, sample_rate_hz=_RATE_HZ, channels=1)
_F32 = _SAMPLES.tobytes()
_CLIP = common.AudioClip(wav=_WAV)
_VOICE = common.AudioClip(wav=wav_bytes(_SECOND, _RATE_HZ))  # the least that a voice may have
_RAW = common.AudioClip(raw=common.RawAudio(format=_FORMAT, data=_F32))
_SEED = common.SamplingOptions(seed=7)
_FRAME = common.Frame(codes=range(CODEBOOKS))
_UTTERANCE = speech.Utterance(text="Hi.", max_audio_ms=160, sampling=_SEED)
_PROMPT = [
    backbone.PromptPart(text=backbone.TextPart(ids=[1, 2, 3])),
    backbone.PromptPart(audio=backbone.AudioPart(frames=[_FRAME])),
    backbone.PromptPart(text=backbone.TextPart(ids=[4, 5])),
]

# Method → one or more calls, each a list of messages.
GOOD_CALLS: dict[str, list[list[Any]]] = {
    "csm.backbone.v1.BackboneService.Generate": [
        [backbone.GenerateRequest(prompt=_PROMPT, max_frames=2, sampling=_SEED)],
        [backbone.GenerateRequest(prompt=_PROMPT[2:], max_frames=3, generated=[_FRAME], sampling=_SEED)],
    ],
    "csm.codec.v1.CodecService.Decode": [
        [codec.DecodeRequest(start={}), codec.DecodeRequest(frames=codec.DecodeFrames(frames=[_FRAME] * 3))]
    ],
    "csm.watermark.v1.WatermarkService.Embed": [
        [
            watermark.EmbedRequest(start=watermark.EmbedStart(format=_FORMAT)),
            watermark.EmbedRequest(audio=watermark.EmbedAudio(data=_F32)),
        ]
    ],
    "csm.watermark.v1.WatermarkService.Detect": [
        [watermark.DetectRequest(audio=clip, search=common.WatermarkSearch(speeds=False))] for clip in (_CLIP, _RAW)
    ],
    "csm.watermark.v1.WatermarkService.DetectStream": [
        [
            watermark.DetectStreamRequest(start=watermark.DetectStart(format=_FORMAT)),
            watermark.DetectStreamRequest(audio=watermark.DetectAudio(data=_F32)),
        ]
    ],
    "csm.tokenizer.v1.TokenizerService.Tokenize": [
        [tokenizer.TokenizeRequest(segments=[tokenizer.TextSegment(speaker=0, text="It costs €30 at 9:15.")])]
    ],
    "csm.tokenizer.v1.TokenizerService.EncodeAudio": [
        [tokenizer.EncodeAudioRequest(audio=clip)] for clip in (_CLIP, _RAW)
    ],
    "csm.speech.v1.SpeechService.Synthesize": [
        [speech.SynthesizeRequest(utterance=_UTTERANCE, output=speech.OutputOptions(container=container))]
        for container in speech.Container.values()
    ],
    "csm.speech.v1.SpeechService.StreamSynthesize": [
        [speech.StreamSynthesizeRequest(utterance=_UTTERANCE)],
        [
            speech.StreamSynthesizeRequest(
                utterance=speech.Utterance(
                    text="Hi.", max_audio_ms=80, context=[speech.ContextSegment(speaker=1, text="No.", audio=_CLIP)]
                )
            )
        ],
    ],
    "csm.speech.v1.SpeechService.Converse": [
        [
            speech.ConverseRequest(configure=speech.ConverseConfigure(max_audio_ms=160)),
            speech.ConverseRequest(user_turn=speech.UserTurn(text="Hello.", audio=_CLIP)),
            speech.ConverseRequest(append_text=speech.AppendText(text="Hi. ")),
            speech.ConverseRequest(flush={}),
            speech.ConverseRequest(interrupt=speech.InterruptTurn(heard={"nanos": 80_000_000})),
        ]
    ],
    "csm.speech.v1.SpeechService.VerifyWatermark": [[speech.VerifyWatermarkRequest(audio=_CLIP)]],
    "csm.speech.v1.SpeechService.VerifyWatermarkStream": [
        [
            speech.VerifyWatermarkStreamRequest(start={}),
            speech.VerifyWatermarkStreamRequest(wav=_WAV[:4000]),
            speech.VerifyWatermarkStreamRequest(wav=_WAV[4000:]),
        ]
    ],
    "csm.voice.v1.VoiceService.CreateVoice": [
        [voice.CreateVoiceRequest(name=name, transcript="I am Ada.", audio=_VOICE, consent_statement="I agree.")]
        for name in ("anna", "ben")
    ],
    "csm.voice.v1.VoiceService.GetVoice": [[voice.GetVoiceRequest(name="anna")]],
    "csm.voice.v1.VoiceService.DeleteVoice": [[voice.DeleteVoiceRequest(name="anna")]],
}
