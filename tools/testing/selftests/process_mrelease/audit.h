/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Audit records of process_mrelease().
 */
#ifndef SELFTESTS_PROCESS_MRELEASE_AUDIT_H
#define SELFTESTS_PROCESS_MRELEASE_AUDIT_H

#include <linux/audit.h>
#include <linux/netlink.h>
#include <sys/socket.h>

#include "util.h"

#define AUDIT_RULE {							\
	.flags = AUDIT_FILTER_EXIT, .action = AUDIT_ALWAYS,		\
	.mask[AUDIT_WORD(__NR_process_mrelease)] =			\
		AUDIT_BIT(__NR_process_mrelease),			\
}

/* Open a socket for audit requests, or for audit records with @groups; or -1. */
static inline int open_audit(unsigned int groups)
{
	const struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = groups };
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_AUDIT);

	if (fd >= 0 && bind(fd, (const struct sockaddr *)&address, sizeof(address))) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/* Return 0 or the value of errno. */
static inline int audit_request(int audit, int type, const void *data, size_t len)
{
	struct {
		struct nlmsghdr head;
		char data[2048];
	} msg = { .head = {
		.nlmsg_len = NLMSG_LENGTH(len), .nlmsg_type = type,
		.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK,
	} };
	const struct nlmsgerr *answer = NLMSG_DATA(&msg.head);

	memcpy(NLMSG_DATA(&msg.head), data, len);
	if (send(audit, &msg, msg.head.nlmsg_len, 0) < 0)
		return errno;
	if (recv(audit, &msg, sizeof(msg), 0) < 0)
		return errno;
	return msg.head.nlmsg_type == NLMSG_ERROR ? -answer->error : EPROTO;
}

/* Return true if auditing is enabled already, or does not answer. */
static inline bool audit_in_use(int audit)
{
	struct {
		struct nlmsghdr head;
		struct audit_status status;
	} msg = { .head = {
		.nlmsg_len = NLMSG_LENGTH(0), .nlmsg_type = AUDIT_GET,
		.nlmsg_flags = NLM_F_REQUEST,
	} };

	return send(audit, &msg, msg.head.nlmsg_len, 0) < 0 ||
	       recv(audit, &msg, sizeof(msg), 0) < 0 ||
	       msg.head.nlmsg_type != AUDIT_GET || msg.status.enabled;
}

/* Record the calls of tasks that start later. Return false if auditing is in use. */
static inline bool start_audit(struct __test_metadata *_metadata, int audit)
{
	const struct audit_status status = { .mask = AUDIT_STATUS_ENABLED, .enabled = 1 };
	const struct audit_rule_data rule = AUDIT_RULE;

	if (audit_in_use(audit))
		return false;
	ASSERT_EQ(0, audit_request(audit, AUDIT_SET, &status, sizeof(status)));
	ASSERT_EQ(0, audit_request(audit, AUDIT_ADD_RULE, &rule, sizeof(rule)));
	return true;
}

static inline void stop_audit(struct __test_metadata *_metadata, int audit)
{
	const struct audit_status status = { .mask = AUDIT_STATUS_ENABLED };
	const struct audit_rule_data rule = AUDIT_RULE;

	EXPECT_EQ(0, audit_request(audit, AUDIT_DEL_RULE, &rule, sizeof(rule)));
	EXPECT_EQ(0, audit_request(audit, AUDIT_SET, &status, sizeof(status)));
	close(audit);
}

#endif
