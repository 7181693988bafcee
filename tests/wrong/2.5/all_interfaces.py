# caught by: test_only_127_0_0_1_is_listened_on | says: can be reached from other machines
import uvicorn


def main(port, workers, app="course.lessons.stage2:build"):
    uvicorn.run(app, host="0.0.0.0", port=port, workers=workers, factory=True)


if __name__ == "__main__":
    main(8000, 4)
