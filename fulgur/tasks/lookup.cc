// What is the colour of k7q2?  ->  lookup("k7q2"), red
#include "fulgur/tasks/records.h"

namespace fulgur {
namespace {

class Lookup : public RecordFamily {
 public:
  std::string name() const override { return "lookup"; }
  std::string summary() const override { return "a value in the record of a name, which a tool knows"; }

 protected:
  int64_t calls() const override { return 1; }
};

FULGUR_FAMILY(Lookup);

}  // namespace
}  // namespace fulgur
