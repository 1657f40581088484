/* libmodbus as a peer:
 *   libmodbus_server IMAGE tcp PORT [UNIT EVERY DELAY_MS [ROUND]]
 *   libmodbus_server IMAGE rtu TTY UNIT [EVERY DELAY_MS]
 * IMAGE as in pymodbus_server.py. With EVERY, each EVERY-th reply comes DELAY_MS
 * late; the requests that arrive meanwhile are answered after it, in order.
 * With ROUND, after as many requests one of the registers that were read last
 * counts up, another one every time. */
#include <modbus.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SIZE = 65536, LINE = 4 * SIZE + 32 };
static char line[LINE];

/* put writes a number of as many registers, the most significant first, and
 * orders them: CDAB and DCBA reverse registers, BADC and DCBA swap their bytes. */
static int put(uint16_t *out, uint64_t number, int width, const char *order)
{
	if (width == 2) {
		MODBUS_SET_INT32_TO_INT16(out, 0, (uint32_t)number);
	} else if (width == 4) {
		MODBUS_SET_INT64_TO_INT16(out, 0, number);
	} else {
		out[0] = (uint16_t)number;
	}
	if (!strcmp(order, "CDAB") || !strcmp(order, "DCBA"))
		for (int i = 0; i < width / 2; i++) {
			uint16_t w = out[i];
			out[i] = out[width - 1 - i];
			out[width - 1 - i] = w;
		}
	if (!strcmp(order, "BADC") || !strcmp(order, "DCBA"))
		for (int i = 0; i < width; i++)
			out[i] = (uint16_t)(out[i] << 8 | out[i] >> 8);
	return width;
}

/* value encodes one value and returns the number of its registers. */
static int value(const char *type, const char *order, const char *text, uint16_t *out)
{
	int n = strchr(type, ':') ? atoi(strchr(type, ':') + 1) : 0;
	long long whole = strtoll(text, NULL, 10);
	if (!strcmp(type, "int8") || !strcmp(type, "uint8"))
		return put(out, 0x5500 | (uint8_t)whole, 1, order);
	if (!strcmp(type, "int8_high") || !strcmp(type, "uint8_high"))
		return put(out, (uint8_t)whole << 8 | 0x55, 1, order);
	if (!strncmp(type, "bit:", 4))
		return put(out, whole ? 1 << n : 0xffff ^ 1 << n, 1, order);
	if (!strcmp(type, "bool") || !strcmp(type, "int16") || !strcmp(type, "uint16"))
		return put(out, whole, 1, order);
	if (!strcmp(type, "int32") || !strcmp(type, "uint32"))
		return put(out, whole, 2, order);
	if (!strcmp(type, "int64"))
		return put(out, whole, 4, order);
	if (!strcmp(type, "uint64"))
		return put(out, strtoull(text, NULL, 10), 4, order);
	if (!strcmp(type, "bcd16") || !strcmp(type, "bcd32"))
		return put(out, strtoull(text, NULL, 16), type[3] == '1' ? 1 : 2, order);
	if (!strcmp(type, "float16")) {
		_Float16 f = (_Float16)strtod(text, NULL);
		uint16_t bits;
		memcpy(&bits, &f, sizeof bits);
		return put(out, bits, 1, order);
	}
	if (!strcmp(type, "float32")) {
		float f = strtof(text, NULL);
		uint32_t bits;
		memcpy(&bits, &f, sizeof bits);
		return put(out, bits, 2, order);
	}
	if (!strcmp(type, "float64")) {
		double f = strtod(text, NULL);
		uint64_t bits;
		memcpy(&bits, &f, sizeof bits);
		return put(out, bits, 4, order);
	}
	if (!strncmp(type, "string:", 7)) {
		int size = (int)strlen(text), width = (n + 1) / 2;
		for (int i = 0; i < width; i++) {
			int high = 2 * i < size ? text[2 * i] : ' ', low = 2 * i + 1 < size ? text[2 * i + 1] : ' ';
			put(out + i, high << 8 | low, 1, order);
		}
		return width;
	}
	fprintf(stderr, "unknown type %s\n", type);
	exit(1);
}

static int hex(const char *text, uint16_t *out)
{
	int n = 0;
	for (; strlen(text) >= 4; text += 4, n++) {
		char word[5] = { text[0], text[1], text[2], text[3], 0 };
		out[n] = (uint16_t)strtoul(word, NULL, 16);
	}
	return n;
}

/* registers appends what a line says to a table. */
static int registers(char *rest, uint16_t *out)
{
	char *type = strtok(rest, " "), *order = strtok(NULL, " "), *text = strtok(NULL, " ");
	return text ? value(type, order, text, out) : hex(type, out);
}

static int bits(const char *text, uint8_t *out)
{
	int n = 0;
	for (; text[n] == '0' || text[n] == '1'; n++)
		out[n] = text[n] == '1';
	return n;
}

static modbus_mapping_t *load(const char *path)
{
	modbus_mapping_t *m = modbus_mapping_new(SIZE, SIZE, SIZE, SIZE);
	FILE *f = fopen(path, "r");
	if (!m || !f)
		return NULL;
	m->nb_registers = m->nb_input_registers = m->nb_bits = m->nb_input_bits = 0;
	while (fgets(line, sizeof line, f)) {
		line[strcspn(line, "\n")] = 0;
		char *rest = strchr(line, ' ');
		if (!rest)
			continue;
		*rest++ = 0;
		if (!strcmp(line, "holding"))
			m->nb_registers += registers(rest, m->tab_registers + m->nb_registers);
		else if (!strcmp(line, "input"))
			m->nb_input_registers += registers(rest, m->tab_input_registers + m->nb_input_registers);
		else if (!strcmp(line, "coil"))
			m->nb_bits += bits(rest, m->tab_bits + m->nb_bits);
		else if (!strcmp(line, "discrete"))
			m->nb_input_bits += bits(rest, m->tab_input_bits + m->nb_input_bits);
	}
	fclose(f);
	return m;
}

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, modbus_strerror(errno));
	exit(1);
}

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	modbus_mapping_t *map = load(argv[1]);
	if (!map)
		fail("load image");
	int tcp = !strcmp(argv[2], "tcp");
	int every = argc > 6 ? atoi(argv[5]) : 0, delay = argc > 6 ? atoi(argv[6]) : 0;
	int round = argc > 7 ? atoi(argv[7]) : 0;
	modbus_t *ctx = tcp ? modbus_new_tcp("127.0.0.1", atoi(argv[3])) : modbus_new_rtu(argv[3], 115200, 'N', 8, 1);
	if (!ctx)
		fail("new");
	int listener = -1;
	if (tcp) {
		listener = modbus_tcp_listen(ctx, 4);
		if (listener < 0)
			fail("listen");
	} else {
		modbus_set_slave(ctx, atoi(argv[4]));
		if (modbus_connect(ctx))
			fail("connect");
	}
	uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
	for (int n = 1, asked = 0;;) {
		if (tcp && modbus_tcp_accept(ctx, &listener) < 0)
			fail("accept");
		for (;;) {
			int length = modbus_receive(ctx, query);
			if (length < 0 && tcp)
				break;
			if (length <= 0)
				continue;
			if (every && n++ % every == 0)
				usleep(delay * 1000);
			modbus_reply(ctx, query, length, map);
			if (round && ++asked % round == 0) {
				int start = query[8] << 8 | query[9], count = query[10] << 8 | query[11]; /* of a read over TCP */
				map->tab_registers[start + asked / round % count]++;
			}
		}
		modbus_close(ctx);
	}
}
