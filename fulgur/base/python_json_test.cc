// JSON as Python has it. What is expected was printed by Python 3.11: json.dumps(json.loads(text), ensure_ascii=False).
#include "fulgur/base/python_json.h"

#include <gtest/gtest.h>

#include "fulgur/base/error.h"
#include "fulgur/base/utf8.h"

namespace fulgur {
namespace {

std::string again(std::string_view text) {
  try {
    return dump_python_json(parse_python_json(text, "text"));
  } catch (const InputError& error) {
    return error.what();
  }
}

TEST(PythonJson, PrintsWhatPythonPrints) {
  for (auto [text, printed] : std::vector<std::pair<const char*, const char*>>{
           {R"({"b":1,"a":[1,2,{}],"b":{"c":null}})", R"({"b": {"c": null}, "a": [1, 2, {}]})"},
           {"[1.0,1e5,1E16,1e-5,0.0001,123456789.125,-0.0,-0,5e-324,1.7976931348623157e308]",
            "[1.0, 100000.0, 1e+16, 1e-05, 0.0001, 123456789.125, -0.0, 0, 5e-324, 1.7976931348623157e+308]"},
           {"[18446744073709551616, -170141183460469231731687303715884105729, 9223372036854775808]",
            "[18446744073709551616, -170141183460469231731687303715884105729, 9223372036854775808]"},
           {"[NaN,Infinity,-Infinity,1e400,-1e400,1e-400]", "[NaN, Infinity, -Infinity, Infinity, -Infinity, 0.0]"},
           {R"("\u00e9\u0001\t\/\"\\\u007f\ud83d\ude00")", "\"é\\u0001\\t/\\\"\\\\\x7f😀\""},
           {" \t\r\n[ ] ", "[]"},
           {"{}", "{}"}})
    EXPECT_EQ(again(text), printed);
}

TEST(PythonJson, ErrorsNameTheByte) {
  for (auto [text, expected] :
       std::vector<std::pair<const char*, const char*>>{{"", "byte 0: expected a value, got the end of the text"},
                                                        {"{\"a\": 1,}", "byte 8: expected a key in double quotes, got '}'"},
                                                        {"[1 2]", "byte 3: expected ',' or ']', got '2]'"},
                                                        {"01", "byte 1: expected nothing behind the value, got '1'"},
                                                        {"{'a': 1}", "byte 1: expected a key in double quotes"},
                                                        {"\"a\nb\"", "byte 2: expected no control character in a string"},
                                                        {"\"\\ud800x\"", "byte 7: expected a whole surrogate pair, got 'x\"'"},
                                                        {"\"\\x\"", "byte 2: expected an escape of JSON"},
                                                        {"\"\xff\"", "byte 1: expected UTF-8"},
                                                        {"[1.]", "byte 2: expected ',' or ']'"},
                                                        {"tru", "byte 0: expected a value, got 'tru'"}})
    EXPECT_EQ(again(text).find(cat("[json] text: ", expected)), 0u) << again(text);
  EXPECT_NE(again(std::string(300, '[')).find("at most 256 brackets"), std::string::npos);
}

TEST(Utf8, CutAnywhereItComesTogetherAgain) {
  const std::string text = "a\xc3\xa9\xe4\xbd\xa0\xf0\x9f\x98\x80z\xe4\xbd q\xf0\x9f\x98\xff\xc3\xed\xa0\x80\xf0\x9f";
  for (size_t first = 0; first <= text.size(); ++first)
    for (size_t second = first; second <= text.size(); ++second) {
      Utf8Stream stream;
      std::string out;
      for (auto part : {text.substr(0, first), text.substr(first, second - first), text.substr(second)}) {
        auto whole = stream.feed(part);
        EXPECT_EQ(invalid_utf8(whole), whole.size());
        out += whole;
      }
      EXPECT_EQ(out + stream.finish(), valid_utf8(text)) << first << " " << second;
    }
}

}  // namespace
}  // namespace fulgur
