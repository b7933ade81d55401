from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from span_sparse.cohort import CohortTable, read_cohort
from span_sparse.errors import CohortError


@pytest.fixture
def table(tmp_path):
    def make(text: str | bytes) -> CohortTable:
        path = tmp_path / "cohort.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_cohort(path)

    return make


def test_a_full_table(table, tmp_path):
    cohort = table(
        "slide_id,case_id,label,mpp,split\n001,P1,tumour,0.25,train\n1e5,P1,,,train\nx.y/z,P 2,normal,.5,test\n"
    )
    assert cohort.path == tmp_path / "cohort.csv"
    assert cohort.slide_ids == ("001", "1e5", "x.y/z")
    assert [cohort.case_of(slide_id) for slide_id in cohort.slide_ids] == ["P1", "P1", "P 2"]
    assert [cohort.mpp(slide_id) for slide_id in cohort.slide_ids] == [0.25, None, 0.5]
    assert cohort.labels("label") == {"001": "tumour", "1e5": None, "x.y/z": "normal"}
    assert cohort.splits("split") == {"001": "train", "1e5": "train", "x.y/z": "test"}
    cohort.check_no_leakage("split")
    assert list(cohort.frame.columns[:2]) == ["slide_id", "case_id"]
    assert cohort.frame["mpp"].dtype == float


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfslide_id,case_id,label\r\n007,C,a b\r\n8,C,c\r\n",
        b"slide_id;case_id;label\n007;C;a b\n8;C;c\n\n\n",
        b"slide_id\tcase_id\tlabel\n007\tC\ta b\n8\tC\tc",
        b" slide_id , case_id ,label\n 007 , C , a b \n,,\n8,C,c\n,,\n",
        b"\n\nSlide_ID,CASE_ID,label\n007,C,a b\n8,C,c\n",
        b'slide_id,case_id,label\n"007","C","a b"\n8,C,c\n',
        b"slide_id,case_id,label\r007,C,a b\r8,C,c\r",
    ],
)
def test_dialects_give_the_same_table(table, data):
    cohort = table(data)
    assert cohort.slide_ids == ("007", "8")
    assert cohort.case_of("007") == "C"
    assert cohort.labels("label") == {"007": "a b", "8": "c"}


@pytest.mark.parametrize("header", ["patient_id", "PATIENT", "Patient_ID", "case_id"])
def test_aliases_of_the_case(table, header):
    assert table(f"slide_id,{header}\na,P7\n").case_of("a") == "P7"


@pytest.mark.parametrize("header", ["wsi", "FILENAME", "filename", "image_path", "path"])
def test_slide_ids_come_from_file_names_when_there_are_none(table, header):
    cohort = table(f"{header},label\nsub/TCGA-1.A.svs,x\nb.tiff,y\n")
    assert cohort.slide_ids == ("TCGA-1.A", "b")
    assert cohort.frame["path"].tolist() == ["sub/TCGA-1.A.svs", "b.tiff"]


def test_an_alias_beside_the_proper_column_is_an_ordinary_column(table):
    cohort = table("slide_id,case_id,patient_id\na,C1,P1\n")
    assert cohort.case_of("a") == "C1"
    assert cohort.labels("patient_id") == {"a": "P1"}


def test_the_case_defaults_to_the_slide(table):
    assert table("slide_id\na\n").case_of("a") == "a"
    cohort = table("slide_id,case_id\na,\nb,NA\n")
    assert (cohort.case_of("a"), cohort.case_of("b")) == ("a", "NA")


@pytest.mark.parametrize("word", ["", "NA", "N/A", "NaN", "nan", "None", "null"])
def test_missing_labels(table, word):
    assert table(f"slide_id,label\na,{word}\nb,x\n").labels("label") == {"a": None, "b": "x"}


def test_what_looks_missing_or_numeric_is_kept(table):
    cohort = table("slide_id,case_id,grade\nNA,nan,1\nnull,0012,na\nNone,1.0,01\n")
    assert cohort.slide_ids == ("NA", "null", "None")
    assert [cohort.case_of(slide_id) for slide_id in cohort.slide_ids] == ["nan", "0012", "1.0"]
    assert cohort.labels("grade") == {"NA": "1", "null": "na", "None": "01"}


def test_cells_may_hold_delimiters_quotes_and_line_breaks(table):
    cohort = table('slide_id,note,split\na,"x, ""y""\nz",train\nb,,wrong\n')
    assert cohort.labels("note") == {"a": 'x, "y"\nz', "b": None}
    with pytest.raises(CohortError, match="line 4, column 'split'"):
        cohort.splits("split")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"cohort table .*cohort\.csv is empty"),
        ("\n \n", "is empty"),
        ("slide_id,label\n", "has a header but no slides"),
        ("label,site\na,b\n", r"line 1: there is no column 'slide_id'.*the header is label, site"),
        ("slide_id,label\na,x\nb\n", r"line 3: expected 2 cells as in the header, found 1"),
        ("slide_id,label\na,x,y\n", r"line 2: expected 2 cells as in the header, found 3"),
        ("slide_id,label\na,x\n\nb,y\na,z\n", r"line 5, column 'slide_id': slide 'a' is in line 2 already"),
        ("path,label\nx/a.svs,x\ny/a.tiff,y\n", r"line 3, column 'path': slide 'a' is in line 2 already"),
        ("slide_id,label\na,x\n,y\n", r"line 3, column 'slide_id': the slide has no id"),
        ("slide_id,slide_id\na,b\n", r"line 1: column 'slide_id' occurs more than once"),
        ("slide_id,x,x\na,b,c\n", r"column 'x' occurs more than once"),
        ("slide_id,wsi,filename\na,b,c\n", r"column 'path' occurs more than once"),
        ("slide_id,mpp\na,0.5\nb,0\n", r"line 3, column 'mpp': expected a positive number .* found '0'"),
        ("slide_id,mpp\na,-0.5\n", r"line 2, column 'mpp'.*found '-0.5'"),
        ("slide_id,mpp\na,inf\n", r"found 'inf'"),
        ("slide_id;mpp\na;0,25\n", r"found '0,25'"),
        ("slide_id,mpp\na,20x\n", r"found '20x'"),
        ('slide_id,label\na,"x\n', r"line 2: .*check the quotes"),
        (b"slide_id,label\n\xe9,x\n", r"is not UTF-8 text \(byte 15\)"),
        (b"slide_id\n\0\n", "binary data"),
        (b"PK\x03\x04\0\0", "binary data"),
    ],
)
def test_tables_that_cannot_be_used(table, text, message):
    with pytest.raises(CohortError, match=message):
        table(text)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(CohortError, match=r"nope\.csv cannot be read: No such file"):
        read_cohort(tmp_path / "nope.csv")
    with pytest.raises(CohortError, match="cannot be read: Is a directory"):
        read_cohort(tmp_path)


def test_splits(table):
    cohort = table("slide_id,case_id,split,fold_0,split_1\na,P,train,val,\nb,P,val,val,test\nc,Q,test,train,train\n")
    assert cohort.splits("fold_0") == {"a": "val", "b": "val", "c": "train"}
    cohort.check_no_leakage("fold_0")
    with pytest.raises(
        CohortError, match=r"column 'split': case 'P' is on two sides, slide 'a' in train and slide 'b' in val"
    ):
        cohort.check_no_leakage("split")
    assert cohort.splits("split_1") == {"b": "test", "c": "train"}
    cohort.check_no_leakage("split_1")
    with pytest.raises(
        CohortError, match=r"line 2, column 'split': expected one of train, val, test or nothing, found 'Train'"
    ):
        table("slide_id,case_id,split\na,P,Train\n").splits("split")
    with pytest.raises(CohortError, match=r"no column 'fold_7'; it has slide_id, case_id"):
        cohort.splits("fold_7")
    with pytest.raises(CohortError, match="no column 'grade'"):
        cohort.labels("grade")
    with pytest.raises(CohortError, match="no slide 'zzz' in the table"):
        cohort.case_of("zzz")


@pytest.fixture
def slides(tmp_path):
    folder = tmp_path / "slides"
    for name in (
        "a.svs", "b.one.tiff", "c.mrxs", "c/Slidedat.ini", "d.svs", "d.xml", "d.png", "e.svs", "e.tiff",
        "sub/f.ndpi", "g", "series/1.dcm", "series/2.dcm", "h.unknown",
    ):  # fmt: skip
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (tmp_path / "secret.svs").write_text("x")
    return folder


@pytest.mark.parametrize(
    ("slide_id", "name"),
    [
        ("a", "a.svs"),
        ("a.svs", "a.svs"),
        ("b.one", "b.one.tiff"),
        ("c", "c.mrxs"),  # not MIRAX's data folder of the same name
        ("d", "d.svs"),  # not its annotations
        ("sub/f", "sub/f.ndpi"),
        ("g", "g"),
        ("h", "h.unknown"),
        ("series", "series"),
    ],
)
def test_files_are_found_by_stem_or_name(table, slides, slide_id, name):
    assert table(f"slide_id\n{slide_id}\n").slide_path(slide_id, slides) == slides / name


def test_the_path_column_wins_where_it_is_filled(table, slides):
    cohort = table("slide_id,path\nx,sub/f.ndpi\na,\ny,missing.svs\n")
    assert cohort.slide_path("x", slides) == slides / "sub" / "f.ndpi"
    assert cohort.slide_path("a", slides) == slides / "a.svs"
    with pytest.raises(CohortError, match=r"slide 'y': there is no file .*missing\.svs; correct column 'path'"):
        cohort.slide_path("y", slides)
    absolute = table(f"slide_id,path\nx,{slides / 'a.svs'}\n")
    assert absolute.slide_path("x", slides) == slides / "a.svs"


@pytest.mark.parametrize("name", ["../secret.svs", "sub/../../secret.svs", "/etc/passwd", ".."])
def test_nothing_outside_the_folder(table, slides, name):
    for text, slide_id in ((f"slide_id,path\nx,{name}\n", "x"), (f"slide_id\n{name}\n", name)):
        with pytest.raises(CohortError, match=r"outside the slides folder .*paths relative"):
            table(text).slide_path(slide_id, slides)


def test_links_the_owner_made_are_followed(table, slides, tmp_path):
    (slides / "linked.svs").symlink_to(tmp_path / "secret.svs")
    assert table("slide_id\nlinked\n").slide_path("linked", slides) == slides / "linked.svs"


def test_no_file_and_several_files(table, slides):
    with pytest.raises(
        CohortError, match=r"slide 'nope': no file in .*slides with that name or stem; add a column 'path'"
    ):
        table("slide_id\nnope\n").slide_path("nope", slides)
    with pytest.raises(CohortError, match=r"several files \(e\.svs, e\.tiff\)"):
        table("slide_id\ne\n").slide_path("e", slides)
    with pytest.raises(CohortError, match=r"no file in"):
        table("slide_id\na\n").slide_path("a", slides / "nowhere")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.lists(st.text("aA0.1-_ é/", min_size=1, max_size=8).map(str.strip).filter(bool), min_size=1, unique=True))
def test_ids_survive(table, slide_ids):
    assert table("slide_id,label\n" + "".join(f"{slide_id},x\n" for slide_id in slide_ids)).slide_ids == tuple(
        slide_ids
    )


def test_ten_thousand_slides_are_checked_quickly(table):
    rows = "".join(f"s{number},p{number // 2},train\n" for number in range(10_000))
    cohort = table("slide_id,case_id,split\n" + rows)
    start = time.perf_counter()
    cohort.check_no_leakage("split")
    assert time.perf_counter() - start < 2.0
