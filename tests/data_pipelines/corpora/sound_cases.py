"""Sound and music corpora as they are published, two or three records each."""

from __future__ import annotations

import json

from tests.data_pipelines.corpora.made_up import SECONDS, Case


def _lines(*lines: str) -> str:
    return "\n".join(lines) + "\n"


VOCALSOUND = Case(
    "vocalsound",
    "tr",
    {
        "datafiles/tr.json": {
            "data": [
                {"wav": "/data/sls/vs/data/f0003_0_cough.wav", "labels": "/m/01b_21"},
                {"wav": "/data/sls/vs/data/m0004_0_sigh.wav", "labels": "/m/07plz5l"},
            ]
        },
        "class_labels_indices_vs.csv": _lines("index,mid,display_name", '4,/m/01b_21,"Cough"', '1,/m/07plz5l,"Sigh"'),
        "audio_16k/f0003_0_cough.wav": SECONDS,
    },
    {
        "f0003_0_cough": (
            "audio_16k/f0003_0_cough.wav",
            {"vocal_sound": "Cough", "label": "Cough", "speaker": "vocalsound-f0003", "gender": "female"},
        )
    },
    {"missing audio": 1},
)

AUDIOCAPS = Case(
    "audiocaps",
    "train",
    {
        "dataset/train.csv": _lines(
            "audiocap_id,youtube_id,start_time,caption",
            '91139,r1nicOVtvkQ,130,"A woman talks, and a baby whispers"',
            "58146,UCy1BEx8jBE,30,Loud burping",
        ),
        "audio/Yr1nicOVtvkQ.wav": SECONDS,
    },
    {"91139": ("audio/Yr1nicOVtvkQ.wav", {"caption": "A woman talks, and a baby whispers"})},
    {"audio not obtained": 1},
)

AUDIOCAPS_TEST = Case(
    "audiocaps",
    "test",
    {
        "dataset/test.csv": _lines(
            "audiocap_id,youtube_id,start_time,caption",
            "1,aaaaaaaaaaa,10,One",
            "2,bbbbbbbbbbb,0,Three",
            "3,aaaaaaaaaaa,10,Two",
        ),
        "audio/aaaaaaaaaaa_10.wav": SECONDS,
        "audio/bbbbbbbbbbb_000000.wav": SECONDS,
    },
    {
        "1": ("audio/aaaaaaaaaaa_10.wav", {"caption": "One", "captions": ["One", "Two"]}),
        "2": ("audio/bbbbbbbbbbb_000000.wav", {"caption": "Three"}),
    },
    purpose="eval",
)

_CLOTHO = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
CLOTHO = Case(
    "clotho",
    "development",
    {
        "clotho_captions_development.csv": _lines(
            _CLOTHO, 'Distorted AM Radio noise.wav,"A, muddled",B,C,D,E', "gone.wav,A,B,C,D,E"
        ),
        "clotho_metadata_development.csv": _lines(
            "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license",
            "Distorted AM Radio noise.wav,noise;radio,1234,x,[0 1],Jörg,http://creativecommons.org/licenses/by/3.0/",
        ).encode("iso-8859-1"),
        "development/Distorted AM Radio noise.wav": SECONDS,
    },
    {
        f"Distorted AM Radio noise-{i}".replace(" ", "_"): (
            "development/Distorted AM Radio noise.wav",
            {
                "caption": caption,
                "keywords": ["noise", "radio"],
                "license": "http://creativecommons.org/licenses/by/3.0/",
            },
        )
        for i, caption in enumerate(("A, muddled", "B", "C", "D", "E"), 1)
    },
    {"missing audio": 1},
)

WAVCAPS = Case(
    "wavcaps",
    "train",
    {
        "json_files/AudioSet_SL/as_final.json": {
            "num_captions_per_audio": 1,
            "data": [
                {"id": "Yb0RFKhbpFJA.wav", "caption": "Wind blows.", "duration": 10.0},
                {"id": "Yaaaaaaaaaaa.wav", "caption": "A test clip.", "duration": 10.0},
            ],
        },
        "json_files/FreeSound/fsd_final.json": {
            "num_captions_per_audio": 1,
            "data": [
                {"id": "180913", "caption": "A dog barks. [loud]", "duration": 1.0},
                {"id": "180914", "caption": "Silence.", "duration": 1.0},
                {"id": "180915", "caption": "A test clip.", "duration": 1.0},
            ],
        },
        "json_files/blacklist/blacklist_exclude_test_ac.json": {
            "AudioSet": ["Yaaaaaaaaaaa.wav"],
            "FreeSound": ["180915"],
        },
        "AudioSet_SL_flac/Yb0RFKhbpFJA.flac": SECONDS,
        "FreeSound_flac/180913.flac": SECONDS,
    },
    {
        "AudioSet_SL-Yb0RFKhbpFJA": (
            "AudioSet_SL_flac/Yb0RFKhbpFJA.flac",
            {"caption": "Wind blows.", "subset": "AudioSet_SL"},
        ),
        "FreeSound-180913": ("FreeSound_flac/180913.flac", {"caption": "A dog barks. [loud]", "subset": "FreeSound"}),
    },
    {"audio not obtained": 1, "blocklist": 2},
)

MUSICCAPS = Case(
    "musiccaps",
    "test",
    {
        "musiccaps-public.csv": _lines(
            "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval",
            '-0Gj8-vB1q4,30,40,/m/0140xf,"[\'low quality\', ""children\'s song""]",A slow song.,4,False,True',
        ),
        "audio/-0Gj8-vB1q4.wav": SECONDS,
    },
    {
        "-0Gj8-vB1q4": (
            "audio/-0Gj8-vB1q4.wav",
            {"caption": "A slow song.", "keywords": ["low quality", "children's song"]},
        )
    },
    purpose="eval",
)

_CLASSES = _lines(
    "index,mid,display_name", '0,/m/09x0r,"Speech"', '137,/m/04rlf,"Music"', '5,/m/0ytgt,"Child speech, kid speaking"'
)
AUDIOSET = Case(
    "audioset",
    "balanced_train",
    {
        "balanced_train_segments.csv": _lines(
            "# Segments csv created Sun Mar  5 10:54:31 2017",
            "# num_ytids=3, num_segs=3",
            "# YTID, start_seconds, end_seconds, positive_labels",
            '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/m/0ytgt"',
            '--ZhevVpy1s, 50.000, 60.000, "/m/04rlf"',
            '--aE2O5G5WE, 0.000, 10.000, "/m/04rlf"',
        ),
        "class_labels_indices.csv": _CLASSES,
        "audio/--PJHxphWEs_30.000.flac": SECONDS,
        "audio/--ZhevVpy1s.flac": SECONDS,
    },
    {
        "--PJHxphWEs": ("audio/--PJHxphWEs_30.000.flac", {"labels": ["Speech", "Child speech, kid speaking"]}),
        "--ZhevVpy1s": ("audio/--ZhevVpy1s.flac", {"labels": ["Music"], "label": "Music"}),
    },
    {"audio not obtained": 1},
)

AUDIOSET_STRONG = Case(
    "audioset",
    "strong_train",
    {
        "audioset_train_strong.tsv": _lines(
            "segment_id\tstart_time_seconds\tend_time_seconds\tlabel",
            "b0RFKhbpFJA_30000\t1.5\t2.25\t/m/04rlf",
            "b0RFKhbpFJA_30000\t0.0\t0.4\t/m/09x0r",
        ),
        "mid_to_display_name.tsv": _lines("/m/09x0r\tSpeech", "/m/04rlf\tMusic"),
        "audio/b0RFKhbpFJA_30000.wav": SECONDS,
    },
    {
        "b0RFKhbpFJA_30000": (
            "audio/b0RFKhbpFJA_30000.wav",
            {
                "events": [
                    {"label": "Speech", "start": 0.0, "end": 0.4},
                    {"label": "Music", "start": 1.5, "end": 2.25},
                ],
                "labels": ["Speech", "Music"],
            },
        )
    },
)

FSD50K = Case(
    "fsd50k",
    "train",
    {
        "FSD50K.ground_truth/dev.csv": _lines(
            "fname,labels,mids,split",
            '64760,"Electric_guitar,Guitar,Music","/m/02sgy,/m/0342h,/m/04rlf",train',
            '16399,"Bark","/m/05tny_",val',
        ),
        "FSD50K.metadata/dev_clips_info_FSD50K.json": {"64760": {"title": "g", "license": "http://cc/by/3.0/"}},
        "FSD50K.dev_audio/64760.wav": SECONDS,
        "FSD50K.dev_audio/16399.wav": SECONDS,
    },
    {
        "64760": (
            "FSD50K.dev_audio/64760.wav",
            {"labels": ["Electric guitar", "Guitar", "Music"], "license": "http://cc/by/3.0/"},
        )
    },
)

ESC50 = Case(
    "esc50",
    "train",
    {
        "ESC-50-master/meta/esc50.csv": _lines(
            "filename,fold,target,category,esc10,src_file,take",
            "1-100032-A-0.wav,1,0,dog,True,100032,A",
            "5-9032-A-0.wav,5,0,dog,True,9032,A",
            "4-1-B-43.wav,4,43,car_horn,False,1,B",
        ),
        "ESC-50-master/audio/1-100032-A-0.wav": SECONDS,
        "ESC-50-master/audio/4-1-B-43.wav": SECONDS,
    },
    {
        "1-100032-A-0": ("ESC-50-master/audio/1-100032-A-0.wav", {"label": "dog", "labels": ["dog"]}),
        "4-1-B-43": ("ESC-50-master/audio/4-1-B-43.wav", {"label": "car horn", "labels": ["car horn"]}),
    },
)

URBANSOUND8K = Case(
    "urbansound8k",
    "train",
    {
        "UrbanSound8K/metadata/UrbanSound8K.csv": _lines(
            "slice_file_name,fsID,start,end,salience,fold,classID,class",
            "1000-3-0-0.wav,1000,0.0,0.4,1,5,3,dog_bark",
            "1001-5-0-0.wav,1001,2.5,2.9,2,10,5,engine_idling",
        ),
        "UrbanSound8K/audio/fold5/1000-3-0-0.wav": SECONDS,
    },
    {"1000-3-0-0": ("UrbanSound8K/audio/fold5/1000-3-0-0.wav", {"label": "dog bark", "labels": ["dog bark"]})},
)

VGGSOUND = Case(
    "vggsound",
    "train",
    {
        "data/vggsound.csv": _lines(
            "--aaaaaaaaa,30,waterfall burbling,train",
            '-bbbbbbbbbb,185,"bird chirping, tweeting",train',
            "-cccccccccc,1,people marching,test",
            "-dddddddddd,9,playing flute,train",
        ),
        "clips/--aaaaaaaaa_000030.wav": SECONDS,
        "clips/-bbbbbbbbbb_185.wav": SECONDS,
    },
    {
        "--aaaaaaaaa_30": (
            "clips/--aaaaaaaaa_000030.wav",
            {"label": "waterfall burbling", "labels": ["waterfall burbling"]},
        ),
        "-bbbbbbbbbb_185": (
            "clips/-bbbbbbbbbb_185.wav",
            {"label": "bird chirping, tweeting", "labels": ["bird chirping, tweeting"]},
        ),
    },
    {"audio not obtained": 1},
)


def _events(*events: tuple[str, float, float]) -> dict[str, list[object]]:
    return {
        "events": [{"label": label, "start": start, "end": end} for label, start, end in events],
        "labels": list(dict.fromkeys(label for label, _, _ in events)),
    }


STRONG_LABELS = Case(
    "strong_labels",
    "train",
    {
        "metadata/train.tsv": _lines(
            "filename\tonset\toffset\tevent_label",
            "Ya_0.000_10.000.wav\t0.25\t0.3999\tAlarm_bell_ringing",
            "quiet.wav\t\t\t",
            "Yb_0.000_10.000.wav\t0.0\t0.1\tSpeech",
            "Ya_0.000_10.000.wav\t0.0\t0.1\tDog",
            "Yb_0.000_10.000.wav\t0.1\tlate\tSpeech",
        ),
        **{f"audio/{name}.wav": SECONDS for name in ("Ya_0.000_10.000", "Yb_0.000_10.000", "quiet")},
    },
    {
        "Ya_0_000_10_000": (
            "audio/Ya_0.000_10.000.wav",
            _events(("Dog", 0.0, 0.1), ("Alarm bell ringing", 0.25, 0.4)),
        ),
        "Yb_0_000_10_000": ("audio/Yb_0.000_10.000.wav", _events(("Speech", 0.0, 0.1))),
    },
    {"no events": 1, "bad cell": 1},
)

STRONG_LABELS_OF_EACH = Case(
    "strong_labels",
    "validation",
    {
        "annotations/validation/one.txt": _lines("0.2\t0.30000000000000004\tdog_bark", "0.0\t0.1\tjackhammer"),
        "annotations/validation/two.txt": _lines("0.1\t0.2\tdog_bark"),
        "audio/validation/one.wav": SECONDS,
        "audio/validation/two.wav": SECONDS,
    },
    {
        "one": ("audio/validation/one.wav", _events(("jackhammer", 0.0, 0.1), ("dog bark", 0.2, 0.3))),
        "two": ("audio/validation/two.wav", _events(("dog bark", 0.1, 0.2))),
    },
    options={
        "header": ["onset", "offset", "event_label"],
        "path": ["annotations/validation", "audio/validation"],
    },
    purpose="eval",
)

CLOTHO_AQA = Case(
    "clotho_aqa",
    "train",
    {
        "clotho_aqa_train.csv": _lines(
            "file_name,QuestionText,answer,confidence",
            "rain.wav,Is it raining?,yes,yes",
            "rain.wav,Is it raining?,yes,no",
            "rain.wav,How many drops?,one,no",
            "rain.wav,Is it raining?,no,no",
            "rain.wav,How many drops?,two,no",
        ),
        "audio_files/rain.wav": SECONDS,
    },
    {
        "rain-1": (
            "audio_files/rain.wav",
            {"question": "Is it raining?", "answer": "yes", "answers": ["yes", "yes", "no"]},
        )
    },
    {"annotators disagree": 1},
)

AVQA = Case(
    "avqa",
    "train",
    {
        "train_qa.json": [
            {
                "id": 183,
                "video_name": "-HG3Omg_89c_000030",
                "video_id": 1,
                "question_text": "What happened?",
                "multi_choice": ["motorboat", "Yacht consignment", "Sailboat set sail", "Consignment car"],
                "answer": 1,
                "question_relation": "View",
                "question_type": "Happening",
            },
            {
                "id": 184,
                "video_name": "gone_000001",
                "video_id": 2,
                "question_text": "?",
                "multi_choice": ["a"],
                "answer": 0,
            },
        ],
        "audio/-HG3Omg_89c_000030.wav": SECONDS,
    },
    {
        "183": (
            "audio/-HG3Omg_89c_000030.wav",
            {
                "question": "What happened?",
                "answer": "Yacht consignment",
                "question_type": "Happening",
                "choices": ["motorboat", "Yacht consignment", "Sailboat set sail", "Consignment car"],
            },
        )
    },
    {"audio not obtained": 1},
)

OPENAQA = Case(
    "openaqa",
    "train",
    {
        "openaqa.json": json.dumps(
            [
                {
                    "instruction": "What is heard?",
                    "input": "",
                    "audio_id": "/data/sls/audioset/-0xyz.flac",
                    "dataset": "audioset_full",
                    "task": "open_ended_question",
                    "output": "A dog.",
                },
                {"instruction": "Why?", "input": "", "audio_id": "/data/none.flac", "dataset": "clotho", "output": "?"},
            ],
            indent=1,
        ),
        "audio/-0xyz.flac": SECONDS,
    },
    {"00000001": ("audio/-0xyz.flac", {"question": "What is heard?", "answer": "A dog.", "subset": "audioset_full"})},
    {"audio not obtained": 1},
)

SALMONN = Case(
    "salmonn",
    "train",
    {
        "stage.json": {
            "annotation": [
                {"path": "LibriSpeech/1-2-3.flac", "text": "hello", "task": "asr"},
                {"path": "AudioCaps/x.wav", "text": "A dog barks.", "task": "audiocaption"},
                {"path": "AudioCaps/x.wav", "text": "A dog.", "task": "QA", "Q": "Which animal?"},
            ]
        },
        "LibriSpeech/1-2-3.flac": SECONDS,
        "AudioCaps/x.wav": SECONDS,
    },
    {
        "00000001": ("LibriSpeech/1-2-3.flac", {"text": "hello", "subset": "asr"}),
        "00000002": ("AudioCaps/x.wav", {"caption": "A dog barks.", "subset": "audiocaption"}),
        "00000003": ("AudioCaps/x.wav", {"question": "Which animal?", "answer": "A dog.", "subset": "QA"}),
    },
)

NSYNTH = Case(
    "nsynth",
    "train",
    {
        "nsynth-train/examples.json": {
            "guitar_acoustic_001-082-050": {
                "note": 1,
                "note_str": "guitar_acoustic_001-082-050",
                "pitch": 82,
                "velocity": 50,
                "sample_rate": 16000,
                "qualities": [0, 1],
                "qualities_str": ["fast_decay"],
                "instrument_family_str": "synth_lead",
                "instrument_source_str": "acoustic",
            }
        },
        "nsynth-train/audio/guitar_acoustic_001-082-050.wav": SECONDS,
    },
    {
        "guitar_acoustic_001-082-050": (
            "nsynth-train/audio/guitar_acoustic_001-082-050.wav",
            {
                "instrument": "synth lead",
                "instrument_source": "acoustic",
                "pitch": 82,
                "velocity": 50,
                "note": "A sharp 5",
                "keywords": ["fast decay"],
            },
        )
    },
)

GTZAN = Case(
    "gtzan",
    "train",
    {
        "genres/blues/blues.00000.wav": SECONDS,
        "genres/jazz/jazz.00053.wav": SECONDS,
        "genres/jazz/jazz.00054.wav": b"RIFF damaged",
    },
    {
        "blues_00000": ("genres/blues/blues.00000.wav", {"genre": "blues"}),
        "jazz_00053": ("genres/jazz/jazz.00053.wav", {"genre": "jazz"}),
    },
    {"known to be damaged": 1},
)

GTZAN_FILTERED = Case(
    "gtzan",
    "valid",
    {
        "train_filtered.txt": "blues/blues.00000.wav\n",
        "valid_filtered.txt": "blues/blues.00001.wav\n",
        "test_filtered.txt": "blues/blues.00002.wav\n",
        **{f"genres/blues/blues.0000{i}.wav": SECONDS for i in range(4)},
    },
    {"blues_00001": ("genres/blues/blues.00001.wav", {"genre": "blues"})},
    {"faulty": 1},
    purpose="eval",
)

_TAGS = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"
MTG_JAMENDO = Case(
    "mtg_jamendo",
    "train",
    {
        "data/splits/split-0/autotagging-train.tsv": "\r\n".join(
            (
                _TAGS,
                "track_0000948\tartist_000087\talbum_000149\t48/948.mp3\t212.7\tgenre---rock\tgenre---80s\t"
                "instrument---piano\tmood/theme---background",
                "track_0000950\tartist_000087\talbum_000149\t50/950.mp3\t248.0\tgenre---rock",
                "track_0000951\tartist_000087\talbum_000149\t51/951.mp3\t9.0\tgenre---rock",
                "track_0000952",
            )
        ),
        "audio/48/948.mp3": SECONDS,
        "audio/50/950.low.mp3": SECONDS,
    },
    {
        "track_0000948": (
            "audio/48/948.mp3",
            {
                "genre": "rock, 80s",
                "instrument": "piano",
                "mood": "background",
                "keywords": ["rock", "80s", "piano", "background"],
            },
        ),
        "track_0000950": ("audio/50/950.low.mp3", {"genre": "rock", "keywords": ["rock"]}),
    },
    {"missing audio": 1, "bad line": 1},
    options={"error_budget": 0.9},
)

CASES = [
    VOCALSOUND,
    AUDIOCAPS,
    AUDIOCAPS_TEST,
    CLOTHO,
    WAVCAPS,
    MUSICCAPS,
    AUDIOSET,
    AUDIOSET_STRONG,
    FSD50K,
    ESC50,
    CLOTHO_AQA,
    AVQA,
    OPENAQA,
    SALMONN,
    NSYNTH,
    GTZAN,
    GTZAN_FILTERED,
    URBANSOUND8K,
    VGGSOUND,
    STRONG_LABELS,
    STRONG_LABELS_OF_EACH,
    MTG_JAMENDO,
]
