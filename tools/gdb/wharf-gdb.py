# SPDX-License-Identifier: MIT
"""
What gdb shows of a program that uses wharf, live or from a core dump:

    (gdb) source tools/gdb/wharf-gdb.py
    (gdb) wharf loops            loops, and what they do
    (gdb) wharf ports            a line for each port
    (gdb) wharf port ADDRESS     all about one: frames, flows, who waits for what; its id will do, too
    (gdb) wharf chunks [POOL]    pictures of segments, and what is lent to whom

and printers for loops, ports, pools, segments, frames, flows and lists: `print *port`; `print/r` is without them.
It reads the library's own structures, so it needs debug information for it; it calls nothing in the program.
"""

import gdb

SIGNS = '.o#&'  # free, claimed, lent, held by several: the later matters more
PICTURE_COLUMNS = 64
WORD_CHUNKS = 64
NO_END = (1 << 63) - 1


# ---- Values ---------------------------------------------------------------------------------------------------------

def number(value):
    """Also of an atomic one."""
    t = value.type.strip_typedefs()
    if t.code not in (gdb.TYPE_CODE_INT, gdb.TYPE_CODE_ENUM, gdb.TYPE_CODE_BOOL, gdb.TYPE_CODE_PTR):
        raise gdb.error('no number: %s' % value.type)
    return int(value)


def enum_name(value, prefix):
    text = str(value)
    return text[len(prefix):].lower() if text.startswith(prefix) else text


def text_of(value):
    """Of an array of char, whatever is in it."""
    try:
        return value.string(errors='replace').split('\0')[0]
    except gdb.error:
        return '?'


def container(pointer, type_name, member):
    """The structure of which *pointer is a member: a path like tally.touched."""
    t = gdb.lookup_type(type_name)
    offset, inner = 0, t
    for name in member.split('.'):
        field = next(f for f in inner.strip_typedefs().fields() if f.name == name)
        offset += field.bitpos // 8
        inner = field.type
    address = int(pointer) - offset
    return gdb.Value(address).cast(t.pointer()).dereference()


def address_of(value):
    return int(value.address) if value.address is not None else 0


def nodes(head, limit=1 << 20):
    """Of a list: addresses of its nodes. What is torn ends it."""
    first = int(head.address)
    node = head['next']
    while int(node) not in (0, first) and limit:
        yield node
        node = node['next']
        limit -= 1


def count(head):
    return sum(1 for _ in nodes(head))


def chain(first, member='next', limit=1 << 20):
    while int(first) and limit:
        yield first.dereference()
        first = first[member]
        limit -= 1


def defined_in(function, name):
    """Is this function of lib/NAME? Several files have statics of the same name."""
    block = gdb.block_for_pc(int(function))
    while block is not None and block.function is None:
        block = block.superblock
    return block is not None and block.function.symtab.filename.endswith(name)


def static_of(name, filename):
    for symbol in gdb.lookup_static_symbols(name):
        if symbol.symtab.filename.endswith(filename) and symbol.is_variable:
            return symbol.value()
    raise gdb.GdbError('no debug information of wharf here (%s of lib/%s)' % (name, filename))


def size_text(n):
    for unit in ('', 'K', 'M', 'G'):
        if n < 10240 or unit == 'G':
            return '%d%s' % (n, unit)
        n //= 1024
    return str(n)


def time_text(ns):
    for unit, length in (('s', 10**9), ('ms', 10**6), ('us', 10**3)):
        if ns >= length:
            return '%.3g%s' % (ns / length, unit)
    return '%dns' % ns


# ---- What there is ----------------------------------------------------------------------------------------------------

def hooked(filename, type_name):
    """Loops and pools are on the list of what a forked child has to close."""
    for hook in chain(static_of('hooks', 'guard.c')):
        if defined_in(hook['child'], filename):
            yield container(hook.address, type_name, 'fork_hook')


def loops():
    return sorted(hooked('/loop.c', 'struct wharf_loop'), key=loop_id)


def pools():
    return sorted(hooked('/pool.c', 'struct wharf_pool'), key=lambda p: number(p['control']['id']))


def ports_of(loop):
    for node in nodes(loop['sources']):
        source = container(node, 'struct wh_source', 'all')
        if defined_in(source['event'], '/port.c'):
            yield source.address.cast(gdb.lookup_type('struct wharf_port').pointer()).dereference()


def loop_id(loop):
    return number(loop['stats']['id'])


def port_id(port):
    return number(port['stats']['id'])


def all_ports():
    return [port for loop in loops() for port in ports_of(loop)]


# ---- Lines ----------------------------------------------------------------------------------------------------------------

def loop_text(loop):
    stats = loop['stats']
    phase = ('outside', 'waits', 'works')
    engine = (None, 'io_uring', 'epoll')
    n = number(stats['phase'])
    parts = ['loop %d' % loop_id(loop), engine[number(stats['engine'])] or '?', 'thread %d' % number(stats['tid']),
             phase[n] if n < len(phase) else '?']
    if number(stats['in_port']):
        for port in ports_of(loop):
            if number(port['tally']['position']) == number(stats['in_port']):
                parts[-1] += ' for port %d' % port_id(port)
    parts.append('ports: %d' % sum(1 for _ in ports_of(loop)))
    for name in ('dirty', 'waiting', 'ready', 'ending'):
        n = count(loop[name])
        if n:
            parts.append('%d %s' % (n, name))
    if number(loop['broken']):
        parts.append('broken: %d' % number(loop['broken']))
    parts.append('turn %d' % number(loop['turn']))
    return ', '.join(parts)


PORT_FLAGS = ('paused', 'starved', 'tx_inline', 'untrusted', 'tx_dead', 'backing_off', 'peer_bye', 'eof', 'answers')


def port_text(port):
    counts = port['stats']['counts']
    parts = ['port %d' % port_id(port), enum_name(port['state'], 'WH_PORT_'), 'fd %d' % number(port['source']['link']['fd'])]
    parts.append('peer %s:%d' % (text_of(port['peer']['name']) or '?', number(port['peer']['pid'])))
    parts.append('out %d, in %d messages' % (number(counts['tx_messages']), number(counts['rx_messages'])))
    unread = number(port['frames_sent']) - number(port['frames_read_by_peer'])
    if unread:
        parts.append('%d frames unread of %d' % (unread, number(port['window'])))
    if number(port['queued_messages']):
        parts.append('%d messages queued' % number(port['queued_messages']))
    if number(port['n_held']):
        parts.append('%d frames held' % number(port['n_held']))
    if number(port['stuck']):
        parts.append('its socket is full')
    if number(port['taken']):
        parts.append('%d messages taken' % number(port['taken']))
    parts += [name for name in PORT_FLAGS if number(port[name])]
    if number(port['reason']['code']):
        parts.append('ends: code %d' % number(port['reason']['code']))
    return ', '.join(parts)


def frame_text(frame):
    """One on its way out."""
    encoder = frame['encoder']
    text = 'frame %d: %d bytes, %d records, %d messages' % (number(frame['ordinal']), number(encoder['size']),
                                                           number(encoder['n_records']), number(frame['n_messages']))
    if number(frame['n_bytes']):
        text += ' of %s' % size_text(number(frame['n_bytes']))
    if number(frame['announces']) >= 0:
        text += ', announces segment %d' % number(frame['announces'])
    if not number(frame['data']):
        text += ', control only'
    if number(frame['bye']):
        text += ', bye'
    return text


def held_text(held):
    text = 'held frame, next record at %d' % number(held['offset'])
    return text + (', %d descriptors' % number(held['n_fds']) if number(held['n_fds']) else '')


def flow_text(flow):
    out, into = flow['out'], flow['in']
    text = enum_name(flow['kind'].cast(gdb.lookup_type('enum wh_flow_kind')), 'WH_FLOW_')
    if number(flow['kind']):
        text += ' %x' % number(flow['id'])
    waiting = sum(1 for _ in chain(out['first']))
    if waiting:
        text += ', %d messages wait (cost %s)' % (waiting, size_text(number(out['cost'])))
    if number(out['credit_bytes']) != NO_END:
        text += ', credit %d' % number(out['credit_bytes'])
    if number(out['dry']):
        text += ', refused for want of it'
    elif not is_alone(out['blocked']):
        text += ', refused'
    if number(into['unreturned_bytes']):
        text += ', %s not given back here' % size_text(number(into['unreturned_bytes']))
    if number(into['paused']):
        text += ', paused with %d records' % count(into['aside'])
    return text


def is_alone(node):
    return int(node['next']) in (0, int(node.address))


def pool_text(pool):
    kind = 'shared' if number(pool['shared']) else 'private'
    return 'pool %d "%s", %s, %s of %s, leases: %d' % (
        number(pool['control']['id']), text_of(pool['name']), kind, size_text(number(pool['bytes'])),
        size_text(number(pool['bytes_max'])), number(pool['n_leases']))


# ---- Chunks -----------------------------------------------------------------------------------------------------------------

def leases(pool):
    for i in range(number(pool['leases_size'])):
        lease = pool['leases'][i]
        if int(lease):
            yield lease.dereference()


def slots(pool):
    """Those with memory: number, slot."""
    for i in range(number(pool['n_slots'])):
        slot = pool['slots'][i]
        if int(slot) and number(slot['n_words']):
            yield i, slot.dereference()


def local_bits(pool, index, word):
    """Free chunks of a word that a loop's thread has taken."""
    bits = 0
    for i in range(4):
        local = pool['local'][i]
        where = number(local['where'])
        if where & 0xffff == index and where >> 32 == word * WORD_CHUNKS:
            bits |= number(local['bits'])
    return bits


def lent_words(lease, index):
    if index >= number(lease['n_slots']) or not int(lease['slots'][index]['lent']):
        return None
    return lease['slots'][index]['lent']


def chunk_states(pool, index, slot):
    """For each chunk the index of its sign."""
    n = number(slot['n_chunks'])
    control = slot['control'].dereference()
    lent = [words for words in (lent_words(lease, index) for lease in leases(pool)) if words is not None]
    states = []
    for word in range((n + WORD_CHUNKS - 1) // WORD_CHUNKS):
        free = number(control['free'][word]) | local_bits(pool, index, word)
        several = number(control['counted'][word])
        is_lent = 0
        for words in lent:
            is_lent |= number(words[word])
        for bit in range(min(WORD_CHUNKS, n - word * WORD_CHUNKS)):
            mask = 1 << bit
            states.append(3 if several & mask else 2 if is_lent & mask else 0 if free & mask else 1)
    return states


def picture(states):
    """One line: each sign is the one that matters most of as many chunks as there must be in it."""
    per_sign = (len(states) + PICTURE_COLUMNS - 1) // PICTURE_COLUMNS or 1
    return ''.join(SIGNS[max(states[i:i + per_sign])] for i in range(0, len(states), per_sign)), per_sign


def slot_text(index, slot, states):
    chunk = 1 << number(slot['control']['chunk_shift'])
    state = slot['control']['state'].cast(gdb.lookup_type('enum wh_slot_state'))
    used = ', '.join('%d %s' % (states.count(i), name)
                     for i, name in enumerate(('free', 'claimed', 'lent', 'held by several')) if states.count(i))
    return 'segment %d, %s, %d chunks of %s: %s' % (
        index, enum_name(state, 'WH_SLOT_'), len(states), size_text(chunk), used)


def show_pool(pool):
    print(pool_text(pool) + ' at 0x%x' % address_of(pool))
    for index, slot in slots(pool):
        states = chunk_states(pool, index, slot)
        line, per_sign = picture(states)
        print('  ' + slot_text(index, slot, states))
        print('    %s%s' % (line, '' if per_sign == 1 else '  (%d chunks each)' % per_sign))
    for lease in leases(pool):
        lent = number(lease['lent_bytes']) - number(lease['returned_here']) - number(lease['returned_bytes'])
        print('  lease %d to process %d: %s lent' % (number(lease['control']['id']), number(lease['control']['peer']),
                                                   size_text(lent)))


# ---- Commands -----------------------------------------------------------------------------------------------------------------

class Wharf(gdb.Command):
    """What a program does with wharf: wharf loops, ports, port ADDRESS, chunks [POOL]."""

    def __init__(self):
        super().__init__('wharf', gdb.COMMAND_DATA, prefix=True)


class Loops(gdb.Command):
    """The loops of this process, and what they do."""

    def __init__(self):
        super().__init__('wharf loops', gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        for loop in loops():
            print('%s at 0x%x' % (loop_text(loop), address_of(loop)))


class Ports(gdb.Command):
    """The ports of this process, a line for each."""

    def __init__(self):
        super().__init__('wharf ports', gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        for loop in loops():
            for port in ports_of(loop):
                print('%s at 0x%x, loop %d' % (port_text(port), address_of(port), loop_id(loop)))


class Port(gdb.Command):
    """All about one port, by its address or its id: wharf port ADDRESS."""

    def __init__(self):
        super().__init__('wharf port', gdb.COMMAND_DATA, gdb.COMPLETE_EXPRESSION)

    def invoke(self, argument, from_tty):
        if not argument:
            raise gdb.GdbError('wharf port ADDRESS, or its id')
        wanted = int(gdb.parse_and_eval(argument).cast(gdb.lookup_type('unsigned long')))
        for port in all_ports():
            if wanted in (address_of(port), port_id(port)):
                self.show(port)
                return
        raise gdb.GdbError('no port there')

    @staticmethod
    def show(port):
        print('%s at 0x%x' % (port_text(port), address_of(port)))
        for name in ('open', 'sending', 'stuck'):
            if int(port[name]):
                print('  %-8s %s' % (name, frame_text(port[name].dereference())))
        for frame in chain(port['frames']):
            print('  full     %s' % frame_text(frame))
        for node in nodes(port['held']):
            print('  held     %s' % held_text(container(node, 'struct wh_held', 'link')))
        print('  flow     %s' % flow_text(port['plain']))
        kinds = port['flows'].type.range()[1] + 1
        for kind in range(kinds):
            table = port['flows'][kind]
            for i in range(number(table['n_slots'])):
                if int(table['flows'][i]):
                    print('  flow     %s' % flow_text(table['flows'][i].dereference()))
        if int(port['lease']):
            pool = gdb.Value(number(port['lease']['pool'])).cast(gdb.lookup_type('struct wharf_pool').pointer())
            print('  memory   %s' % pool_text(pool.dereference()))
        if number(port['reason']['code']):
            print('  ends     %s' % text_of(port['reason_text']))


class Chunks(gdb.Command):
    """Pictures of the segments of a pool, by its address, or of all: free ., claimed o, lent #, held by several &."""

    def __init__(self):
        super().__init__('wharf chunks', gdb.COMMAND_DATA, gdb.COMPLETE_EXPRESSION)

    def invoke(self, argument, from_tty):
        wanted = int(gdb.parse_and_eval(argument).cast(gdb.lookup_type('unsigned long'))) if argument else 0
        found = [pool for pool in pools() if wanted in (0, address_of(pool), number(pool['control']['id']))]
        if wanted and not found:
            raise gdb.GdbError('no pool there')
        for pool in found:
            show_pool(pool)


# ---- Printers -----------------------------------------------------------------------------------------------------------------

class Summary:
    """A line in front of the fields, which stay."""

    def __init__(self, value, describe):
        self.value, self.describe = value, describe

    def to_string(self):
        try:
            return self.describe(self.value)
        except (gdb.error, gdb.GdbError, RuntimeError) as why:
            return '(torn: %s)' % why

    def children(self):
        for field in self.value.type.strip_typedefs().fields():
            if field.name:
                yield field.name, self.value[field]


class Line:
    """Instead of the fields."""

    def __init__(self, value, describe):
        self.value, self.describe = value, describe

    to_string = Summary.to_string


def segment_line(slot):
    """Without its pool: which chunks are free, and which are not."""
    n = number(slot['n_chunks'])
    free = slot['control']['free']
    states = [0 if number(free[i // WORD_CHUNKS]) >> i % WORD_CHUNKS & 1 else 1 for i in range(n)] if int(slot['control']) else []
    return '%d chunks, free ., others o: %s' % (n, picture(states)[0])


PRINTERS = {
    'wharf_loop': (Summary, loop_text),
    'wharf_port': (Summary, port_text),
    'wharf_pool': (Summary, pool_text),
    'wh_slot': (Summary, segment_line),
    'wh_outframe': (Line, frame_text),
    'wh_held': (Line, held_text),
    'wh_flow': (Summary, flow_text),
    'wh_list': (Line, lambda head: 'linked with %d' % count(head)),
}


def find_printer(value):
    t = value.type.unqualified().strip_typedefs()
    if t.code != gdb.TYPE_CODE_STRUCT or t.tag not in PRINTERS:
        return None
    kind, describe = PRINTERS[t.tag]
    return kind(value, describe)


find_printer.__name__ = 'wharf'
gdb.pretty_printers[:] = [p for p in gdb.pretty_printers if getattr(p, '__name__', '') != 'wharf'] + [find_printer]
for command in (Wharf, Loops, Ports, Port, Chunks):
    command()
