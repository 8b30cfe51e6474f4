#include "fulgur/text/stop_text.h"

#include <gtest/gtest.h>

namespace fulgur {
namespace {

TEST(StopText, EndsBeforeTheFirstStopHoweverTheTextIsCut) {
  const std::string text = "One\n\nTwo END three";
  for (auto [stops, expected] : std::vector<std::pair<std::vector<std::string>, std::string>>{{{"END"}, "One\n\nTwo "},
                                                                                              {{"END", "\n\n"}, "One"},
                                                                                              {{"TwoE", "ne\n\nT"}, "O"},
                                                                                              {{"none", "threes", ""}, text},
                                                                                              {{}, text}})
    for (size_t part = 1; part <= text.size(); ++part) {
      StopText stop(stops);
      std::string out;
      for (size_t at = 0; at < text.size(); at += part) out += stop.feed(text.substr(at, part));
      out += stop.finish();
      EXPECT_EQ(out, expected) << part;
      EXPECT_EQ(stop.stopped(), expected != text);
    }
}

TEST(StopText, GivesWhatCannotBeOfAStopAtOnce) {
  StopText stop({"###"});
  EXPECT_EQ(stop.feed("a#"), "a");
  EXPECT_EQ(stop.feed("#b"), "##b");
  EXPECT_EQ(stop.feed("##"), "");
  EXPECT_EQ(stop.finish(), "##");
}

}  // namespace
}  // namespace fulgur
