/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KX_TEST_THROW_HH
#define KX_TEST_THROW_HH
#include <exception>
#include <string>

struct Shape {
	virtual ~Shape();
	virtual std::string name() const;
};
struct Square : Shape {
	std::string name() const override;
};
struct Failure : std::exception {
	int code;
	explicit Failure(int c) : code(c) {}
	const char *what() const noexcept override;
};
extern "C" {
void throw_it(int how);
void call_back(void (*fn)(void *), void *arg); /* C between two others */
int catch_inside(int how);
Shape *make_shape(int which);
int last_destroyed();
void touch_thread_local();
}
#endif
