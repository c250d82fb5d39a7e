"""Speech corpora as they are published, two or three records each."""

from __future__ import annotations

import json

from tests.data_pipelines.corpora.made_up import SECONDS, Case

EN = {"language": "en"}
ZH = {"language": "zh"}


def _lines(*lines: str) -> str:
    return "\n".join(lines) + "\n"


LIBRISPEECH = Case(
    "librispeech",
    "train-clean-100",
    {
        "LibriSpeech/SPEAKERS.TXT": _lines(";ID |SEX| SUBSET |MIN| NAME", "14   | F | train-clean-100 | 25.0 | Anne"),
        "LibriSpeech/train-clean-100/14/208/14-208.trans.txt": _lines("14-208-0000 HELLO THERE", "14-208-0001 IT'S ME"),
        "LibriSpeech/train-clean-100/14/208/14-208-0000.flac": SECONDS,
        "LibriSpeech/train-clean-100/14/208/14-208-0001.flac": SECONDS,
        "LibriSpeech/test-clean/1/2/1-2.trans.txt": _lines("1-2-0000 HELD OUT"),
        "LibriSpeech/test-clean/1/2/1-2-0000.flac": SECONDS,
    },
    {
        f"14-208-000{i}": (
            f"LibriSpeech/train-clean-100/14/208/14-208-000{i}.flac",
            {"text": text, "speaker": "librispeech-14", "gender": "female", **EN},
        )
        for i, text in enumerate(("hello there", "it's me"))
    },
)

LIBRITTS = Case(
    "libritts",
    "train-clean-360",
    {
        "LibriTTS/speakers.tsv": _lines("READER\tGENDER\tSUBSET\tNAME", "7\tM\ttrain-clean-360\tBob"),
        "LibriTTS/train-clean-360/7/1/7_1_000001_000000.wav": SECONDS,
        "LibriTTS/train-clean-360/7/1/7_1_000001_000000.normalized.txt": "Hello, Mister Smith.\n",
        "LibriTTS/train-clean-360/7/1/7_1_000001_000000.original.txt": "Hello, Mr. Smith.\n",
    },
    {
        "7_1_000001_000000": (
            "LibriTTS/train-clean-360/7/1/7_1_000001_000000.wav",
            {"text": "Hello, Mister Smith.", "speaker": "librispeech-7", "gender": "male", **EN},
        )
    },
)

# The columns of releases since 17.
_CV = (
    "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\tlocale\t"
    "segment"
)


def _cv(client: str, path: str, sentence: str, age: str = "", gender: str = "", accents: str = "") -> str:
    return f"{client}\t{path}\t0a1b\t{sentence}\t\t2\t0\t{age}\t{gender}\t{accents}\t\tzh-HK\t"


COMMON_VOICE = Case(
    "common_voice",
    "validated",
    {
        "cv/zh-HK/validated.tsv": _lines(
            _CV,
            _cv("abcd0123456789abcdef", "cv_1.mp3", '佢話"好"', "twenties", "female_feminine", "香港"),
            _cv("ef", "cv_2.mp3", "在測試集"),
            _cv("ef", "cv_3.mp3", ""),
            _cv("ef", "cv_4.mp3", "早晨", gender="other"),
        ),
        "cv/zh-HK/test.tsv": _lines(_CV, _cv("ef", "cv_2.mp3", "在測試集")),
        "cv/zh-HK/dev.tsv": _lines(_CV),
        **{f"cv/zh-HK/clips/cv_{i}.mp3": SECONDS for i in range(1, 5)},
    },
    {
        "cv_1": (
            "cv/zh-HK/clips/cv_1.mp3",
            {
                "text": '佢話"好"',
                "language": "yue",
                "locale": "zh-HK",
                "speaker": "abcd0123456789ab",
                "age": "twenties",
                "gender": "female",
                "dialect": "香港",
            },
        ),
        "cv_4": ("cv/zh-HK/clips/cv_4.mp3", {"text": "早晨", "language": "yue", "locale": "zh-HK", "speaker": "ef"}),
    },
    {"evaluation clip": 1, "no text": 1},
)

FLEURS = Case(
    "fleurs",
    "test",
    {
        "data/cmn_hans_cn/test.tsv": _lines('1\t100.wav\t你好,"世界"!\t你好 世界\t你 好\t6400\tMALE'),
        "data/cmn_hans_cn/audio/test/100.wav": SECONDS,
    },
    {
        "cmn_hans_cn-100": (
            "data/cmn_hans_cn/audio/test/100.wav",
            {
                "text": "你好 世界",
                "text_raw": '你好,"世界"!',
                "language": "zh",
                "locale": "cmn_hans_cn",
                "gender": "male",
            },
        )
    },
    purpose="eval",
)

AISHELL1 = Case(
    "aishell1",
    "train",
    {
        "data_aishell/transcript/aishell_transcript_v0.8.txt": _lines(
            "BAC009S0002W0122 而 对 楼市", "BAC009S0002W0123 用 iPhone 手机", "BAC009S0764W0121 测试"
        ),
        "data_aishell/wav/train/S0002/BAC009S0002W0122.wav": SECONDS,
        "data_aishell/wav/train/S0002/BAC009S0002W0123.wav": SECONDS,
        "data_aishell/wav/train/S0002/BAC009S0002W0999.wav": SECONDS,
        "data_aishell/wav/test/S0764/BAC009S0764W0121.wav": SECONDS,
    },
    {
        f"BAC009S0002W012{i}": (
            f"data_aishell/wav/train/S0002/BAC009S0002W012{i}.wav",
            {"text": text, "speaker": "aishell1-S0002", **ZH},
        )
        for i, text in ((2, "而对楼市"), (3, "用iPhone手机"))
    },
    {"no text": 1},
)

AISHELL2 = Case(
    "aishell2",
    "train",
    {
        "AISHELL-2/iOS/data/trans.txt": _lines("IC0001W0001\t厨房 用品", "IC0001W0002\t没有 录音"),
        "AISHELL-2/iOS/data/wav/C0001/IC0001W0001.wav": SECONDS,
        "AISHELL-2/iOS/test/trans.txt": _lines("IT0001W0001\t测试"),
        "AISHELL-2/iOS/test/wav/T0001/IT0001W0001.wav": SECONDS,
    },
    {
        "IC0001W0001": (
            "AISHELL-2/iOS/data/wav/C0001/IC0001W0001.wav",
            {"text": "厨房用品", "speaker": "aishell2-C0001", **ZH},
        )
    },
    {"missing audio": 1},
)

_GIGA = "GigaSpeech/audio/podcast/P0001/POD1.opus"
GIGASPEECH = Case(
    "gigaspeech",
    "xs",
    {
        "GigaSpeech/GigaSpeech.json": {
            "dataset": "GigaSpeech",
            "audios": [
                {
                    "path": "audio/podcast/P0001/POD1.opus",
                    "aid": "POD1",
                    "duration": 3.0,
                    "subsets": ["{XL}"],
                    "segments": [
                        {
                            "sid": "POD1_S1",
                            "speaker": "N/A",
                            "begin_time": 0.5,
                            "end_time": 1.25,
                            "subsets": ["{XS}"],
                            "text_tn": "AS THEY'RE LEAVING <COMMA> CAN KASH <QUESTIONMARK>",
                        },
                        {
                            "sid": "POD1_S2",
                            "speaker": "anne",
                            "begin_time": 1.5,
                            "end_time": 2.0,
                            "subsets": ["{XS}"],
                            "text_tn": "<MUSIC>",
                        },
                        {"sid": "POD1_S3", "begin_time": 2.0, "end_time": 3.0, "subsets": ["{TEST}"], "text_tn": "NO"},
                    ],
                }
            ],
        },
        _GIGA: 3.0,
    },
    {"POD1_S1": (_GIGA, {"text": "as they're leaving, can kash?", **EN})},
    {"no speech": 1},
    seconds={"POD1_S1": 0.75},
)

# The layout of the list as its makers and others show it; the texts are new.
_WENET = "WenetSpeech/audio/train/youtube/B00000/Y0000000000_--x.opus"
WENETSPEECH = Case(
    "wenetspeech",
    "l",
    {
        "WenetSpeech/WenetSpeech.json": {
            "audios": [
                {
                    "aid": "Y0000000000_--x",
                    "duration": 3.0,
                    "md5": "48af",
                    "path": "audio/train/youtube/B00000/Y0000000000_--x.opus",
                    "source": "youtube",
                    "tags": ["drama"],
                    "url": "https://www.youtube.com/watch?v=--x",
                    "segments": [
                        {
                            "sid": f"Y0000000000_--x_S0000{number}",
                            "confidence": confidence,
                            "begin_time": number * 0.5,
                            "end_time": number * 0.5 + 0.45,
                            "subsets": subsets,
                            "text": text,
                        }
                        for number, confidence, subsets, text in (
                            (0, 1.0, ["L", "M", "S"], "你 看过 阿Q 吗"),
                            (1, 0.97, ["L"], "用 OK LA　做 的 "),
                            (2, 0.7, ["W"], "听不清"),
                            (3, 1.0, ["L"], "<SIL>"),
                            (4, 1.0, ["TEST_NET"], "测试"),
                        )
                    ],
                }
            ],
        },
        _WENET: 3.0,
    },
    {
        f"Y0000000000_--x_S0000{number}": (_WENET, {"text": text, **ZH})
        for number, text in ((0, "你看过阿Q吗"), (1, "用OK LA做的"))
    },
    {"no speech": 1},
)

_MLS = "mls_german_opus"
MLS = Case(
    "mls",
    "train",
    {
        f"{_MLS}/metainfo.txt": _lines(
            " SPEAKER   |   GENDER   | PARTITION  |  MINUTES   |  BOOK ID   |        TITLE        | CHAPTER ",
            "  10232    |     M      |   secret   |   17.148   |   10057    | Ein langer Titel               | Kap. 1",
            "   9508    |     F      |   train    |   9.347    |   10105    |           Gedichte             |   XXVI",
        ),
        f"{_MLS}/train/transcripts.txt": _lines(
            "9508_10105_000000\tguten morgen sagte sie's leise", "77_12959_000013\tund er-er schwieg lange"
        ),
        f"{_MLS}/train/segments.txt": _lines(
            "9508_10105_000000\thttp://www.archive.org/download/a.mp3\t401.76\t417.57"
        ),
        f"{_MLS}/train/audio/9508/10105/9508_10105_000000.opus": SECONDS,
        f"{_MLS}/train/audio/77/12959/77_12959_000013.opus": SECONDS,
        f"{_MLS}/test/transcripts.txt": _lines("1_2_000000\tzur prüfung"),
        f"{_MLS}/test/audio/1/2/1_2_000000.opus": SECONDS,
        "mls_polish/train/transcripts.txt": _lines("5_6_000001\tdzień dobry"),
        "mls_polish/train/audio/5/6/5_6_000001.flac": SECONDS,
    },
    {
        "9508_10105_000000": (
            f"{_MLS}/train/audio/9508/10105/9508_10105_000000.opus",
            {"text": "guten morgen sagte sie's leise", "language": "de", "speaker": "mls-9508", "gender": "female"},
        ),
        "77_12959_000013": (
            f"{_MLS}/train/audio/77/12959/77_12959_000013.opus",
            {"text": "und er-er schwieg lange", "language": "de", "speaker": "mls-77"},
        ),
        "5_6_000001": (
            "mls_polish/train/audio/5/6/5_6_000001.flac",
            {"text": "dzień dobry", "language": "pl", "speaker": "mls-5"},
        ),
    },
)

_VP_ID = "20131007-0900-PLENARY-19-en_20131007-21:26:04"
_VP = f"transcribed_data/en/2013/{_VP_ID}"
VOXPOPULI = Case(
    "voxpopuli",
    "train",
    {
        "transcribed_data/en/asr_train.tsv": _lines(
            "id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender\tis_gold_transcript\taccent",
            f'{_VP_ID}_3\t"No", he said in 2013.\tno he said in twenty thirteen\t1122\ttrain\tfemale\tTrue\tNone',
            f"{_VP_ID}_4\tThank you.\t\tNone\ttrain\tNone\tFalse\ten_sk",
            f"{_VP_ID}_5\t\t\t1122\ttrain\tfemale\tFalse\tNone",
        ),
        "transcribed_data/en/asr_test.tsv": "id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender\n",
        **{f"{_VP}_{number}.ogg": SECONDS for number in (3, 4, 5)},
    },
    {
        f"{_VP_ID}_3": (
            f"{_VP}_3.ogg",
            {
                "text": "no he said in twenty thirteen",
                "text_raw": '"No", he said in 2013.',
                "speaker": "voxpopuli-1122",
                "gender": "female",
                "is_gold_transcript": True,
                **EN,
            },
        ),
        f"{_VP_ID}_4": (
            f"{_VP}_4.ogg",
            {"text": "Thank you.", "text_raw": "Thank you.", "accent": "en_sk", "is_gold_transcript": False, **EN},
        ),
    },
    {"no text": 1},
)

_TED = "TEDLIUM_release-3"
TEDLIUM = Case(
    "tedlium",
    "train",
    {
        f"{_TED}/legacy/train/stm/AnneLee_2009.stm": _lines(
            "AnneLee_2009 1 AnneLee_2009 0.00 0.50 <NA> ignore_time_segment_in_scoring",
            "AnneLee_2009 1 AnneLee_2009 0.50 1.25 <o,f0,female> it 's what <unk> people 's lives were {NOISE} like",
            "AnneLee_2009 1 inter_segment_gap 1.25 1.50 <o,f0,>",
            "AnneLee_2009 1 AnneLee_2009 1.50 2.00 <NA> so(2) we ask (AnneLee_2009-1.50-2.00-F0_F-S7)",
            "AnneLee_2009 1 AnneLee_2009 2.00 two",
        ),
        f"{_TED}/legacy/train/sph/AnneLee_2009.sph": 2.5,
        f"{_TED}/legacy/test/stm/Bob_2010.stm": "Bob_2010 1 Bob_2010 0.0 1.0 <F0_M> held out\n",
        f"{_TED}/legacy/test/sph/Bob_2010.sph": 1.0,
        # Other files of the same talks.
        "TEDLIUM_release2/test/sph/AnneLee_2009.sph": 9.0,
    },
    {
        "AnneLee_2009-00002": (
            f"{_TED}/legacy/train/sph/AnneLee_2009.sph",
            {
                "text": "it's what people's lives were like",
                "has_unknown": True,
                "speaker": "AnneLee_2009",
                "gender": "female",
                **EN,
            },
        ),
        "AnneLee_2009-00004": (
            f"{_TED}/legacy/train/sph/AnneLee_2009.sph",
            {"text": "so we ask", "has_unknown": False, "speaker": "AnneLee_2009", **EN},
        ),
    },
    {"no speech": 2, "bad line": 1},
    seconds={"AnneLee_2009-00002": 0.75, "AnneLee_2009-00004": 0.5},
)

COVOST2 = Case(
    "covost2",
    "train",
    {
        "cv4/en/validated.tsv": _lines(
            "client_id\tpath\tsentence",
            "me\tcommon_1.mp3\tGood morning",
            "me\tcommon_2.mp3\tBye",
            "me\tcommon_4.mp3\tYes",
        ),
        "cv4/en/clips/common_1.mp3": SECONDS,
        "cv4/en/clips/common_4.mp3": SECONDS,
        "covost_v2.en_zh-CN.tsv": _lines(
            "path\ttranslation\tsplit",
            "common_1.mp3\t早上好\ttrain",
            "common_2.mp3\t再见\ttest",
            "common_3.mp3\t无\ttrain",
            "common_4.mp3\t是\ttrain_covost",
        ),
    },
    {
        f"common_{i}-zh-CN": (
            f"cv4/en/clips/common_{i}.mp3",
            {"text": text, "translation": {"zh": translated}, "speaker": "me", **EN},
        )
        for i, text, translated in ((1, "Good morning", "早上好"), (4, "Yes", "是"))
    },
    {"no source sentence": 1},
)

_MELD = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
MELD = Case(
    "meld",
    "train",
    {
        "train_sent_emo.csv": _lines(
            _MELD,
            '1,"Oh, it\x92s you!",Monica,Fear,negative,0,0,8,21,"00:16:16,059","00:16:21,731"',
            '2,Fine.,Joey,neutral,neutral,0,1,8,21,"00:16:21,940","00:16:23,442"',
            '3,Broken.,Ross,neutral,neutral,125,3,8,21,"00:16:21,940","00:16:23,442"',
        ),
        "train_splits/dia0_utt0.wav": SECONDS,
        "train_splits/dia125_utt3.mp4": b"cut",
        "dev_splits_complete/dia0_utt0.wav": SECONDS,
    },
    {
        "train-dia0_utt0": (
            "train_splits/dia0_utt0.wav",
            {"text": "Oh, it’s you!", "emotion": "fear", "sentiment": "negative", "speaker": "Monica", **EN},
        )
    },
    {"missing audio": 1, "known to be damaged": 1},
)

IEMOCAP = Case(
    "iemocap",
    "train",
    {
        "IEMOCAP/Session1/dialog/EmoEvaluation/Ses01F_impro01.txt": _lines(
            "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]",
            "",
            "[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]",
            "C-E2:\tNeutral;\t()",
            "[9.0000 - 9.5000]\tSes01F_impro01_M000\texc\t[4.0, 3.0, 3.0]",
            "[9.0000 - 9.5000]\tSes01F_impro01_M001\txxx\t[4.0, 3.0, 3.0]",
        ),
        "IEMOCAP/Session1/dialog/EmoEvaluation/Categorical/Ses01F_impro01_e2_cat.anvil.txt": "no label here\n",
        "IEMOCAP/Session1/dialog/transcriptions/Ses01F_impro01.txt": _lines(
            "Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.", "Ses01F_impro01_M000 [009.0000-009.5000]: Do you?"
        ),
        "IEMOCAP/Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav": SECONDS,
        "IEMOCAP/Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_M000.wav": SECONDS,
        "IEMOCAP/Session5/dialog/EmoEvaluation/Ses05F_impro01.txt": "[1 - 2]\tSes05F_impro01_F000\tneu\t[2, 2, 2]\n",
    },
    {
        f"Ses01F_impro01_{who}000": (
            f"IEMOCAP/Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_{who}000.wav",
            {"text": text, "emotion": emotion, "gender": gender, "speaker": f"iemocap-1{who}", **EN},
        )
        for who, text, emotion, gender in (("F", "Excuse me.", "neutral", "female"), ("M", "Do you?", "happy", "male"))
    },
    {"emotion xxx is not used": 1},
)

VOXCELEB1 = Case(
    "voxceleb1",
    "train",
    {
        "iden_split.txt": _lines(
            "1 id10001/zELwAz2W6hM/00001.wav", "3 id10001/zELwAz2W6hM/00002.wav", "1 id10002/abcdefghijk/00001.wav"
        ),
        "veri_test.txt": "1 id10002/abcdefghijk/00001.wav id10002/abcdefghijk/00002.wav\n",
        "vox1_meta.csv": _lines(
            "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet", "id10001\tA.J._Buckley\tm\tIreland\tdev"
        ),
        "wav/id10001/zELwAz2W6hM/00001.wav": SECONDS,
        "wav/id10001/zELwAz2W6hM/00002.wav": SECONDS,
        "wav/id10002/abcdefghijk/00001.wav": SECONDS,
    },
    {
        "id10001-zELwAz2W6hM-00001": (
            "wav/id10001/zELwAz2W6hM/00001.wav",
            {"speaker": "id10001", "gender": "male"},
        )
    },
    {"evaluation clip": 1},
)

VOXCELEB2 = Case(
    "voxceleb2",
    "dev",
    {
        "vox2_meta.csv": _lines("VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set ", "id00012 ,n000012 ,f ,dev "),
        "dev/wav/id00012/21Uxsk56VDQ/00001.wav": SECONDS,
        "test/wav/id00017/01dfn2spqyE/00001.wav": SECONDS,
    },
    {
        "id00012-21Uxsk56VDQ-00001": (
            "dev/wav/id00012/21Uxsk56VDQ/00001.wav",
            {"speaker": "id00012", "gender": "female"},
        )
    },
)

FLUENT = Case(
    "fluent_speech_commands",
    "train",
    {
        "data/train_data.csv": _lines(
            ",path,speakerId,transcription,action,object,location",
            "0,wavs/speakers/2BqVo/a1.wav,2BqVo,Turn up the heat in the kitchen,increase,heat,kitchen",
            '1,wavs/speakers/2BqVo/a2.wav,2BqVo,"Lights, on",activate,lights,none',
        ),
        "data/speaker_demographics.csv": _lines("speakerId,Gender,ageRange", "2BqVo,female,22-40"),
        "wavs/speakers/2BqVo/a1.wav": SECONDS,
        "wavs/speakers/2BqVo/a2.wav": SECONDS,
    },
    {
        f"2BqVo-a{i}": (
            f"wavs/speakers/2BqVo/a{i}.wav",
            {
                "text": text,
                "intent": intent,
                "slots": slots,
                "speaker": "fsc-2BqVo",
                "gender": "female",
                "age": "22-40",
                **EN,
            },
        )
        for i, text, intent, slots in (
            (1, "Turn up the heat in the kitchen", "increase heat kitchen", {"object": "heat", "location": "kitchen"}),
            (2, "Lights, on", "activate lights", {"object": "lights"}),
        )
    },
)

SLURP = Case(
    "slurp",
    "train",
    {
        "dataset/slurp/train.jsonl": _lines(
            json.dumps(
                {
                    "slurp_id": 5,
                    "sentence": "wake me at five am this week",
                    "intent": "alarm_set",
                    "action": "set",
                    "scenario": "alarm",
                    "sentence_annotation": "wake me at [time : five am] [date : this week]",
                    "tokens": [],
                    "entities": [],
                    "recordings": [{"file": "audio-1.flac", "wer": 0.0, "status": "correct"}, {"file": "audio-2.flac"}],
                }
            ),
            "{not json",
        ),
        "slurp_real/audio-1.flac": SECONDS,
        "slurp_real/audio-2.flac": SECONDS,
    },
    {
        f"audio-{i}": (
            f"slurp_real/audio-{i}.flac",
            {
                "text": "wake me at five am this week",
                "intent": "alarm_set",
                "scenario": "alarm",
                "entities": [{"type": "time", "value": "five am"}, {"type": "date", "value": "this week"}],
                "slots": {"time": "five am", "date": "this week"},
                **EN,
            },
        )
        for i in (1, 2)
    },
    {"bad line": 1},
)

CASES = [
    LIBRISPEECH,
    LIBRITTS,
    COMMON_VOICE,
    FLEURS,
    AISHELL1,
    AISHELL2,
    GIGASPEECH,
    WENETSPEECH,
    MLS,
    VOXPOPULI,
    TEDLIUM,
    COVOST2,
    MELD,
    IEMOCAP,
    VOXCELEB1,
    VOXCELEB2,
    FLUENT,
    SLURP,
]
